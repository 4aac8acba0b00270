"""Whole models of every entry and every encoding that it takes."""

import copy
from collections.abc import Iterable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from attention_zoo import Unsupported, create_attention, create_position
from attention_zoo.attention.base import take_auxiliary_loss
from attention_zoo.models import LanguageModel, Seq2Seq
from attention_zoo.models.blocks import AttentionFactory
from attention_zoo.models.stacks import Decoder, Encoder, PositionFactory
from attention_zoo.zoo import ATTENTION, POSITION, Role
from tests.conformance.cases import DIM, base_class, fits, mark_exhaustive, moved, small_options
from tests.conformance.definition import key_mask, packed
from tests.conformance.numbers import assert_same

VOCABULARY, LAYERS, PAD = 11, 2, 0
SIZES = {
    "vocabulary_size": VOCABULARY,
    "dim": DIM,
    "ffn_dim": 2 * DIM,
    "layers": LAYERS,
    "dropout": 0.0,
}


def pairs(*roles: str) -> pytest.MarkDecorator:
    """Every attention that plays one of the roles, and every encoding, each in a model.

    The pairs themselves are tested in attention. An encoding serves all of a model's
    self-attention.
    """
    serving = [
        position
        for position in POSITION
        if {*roles} - {"cross"} <= {*POSITION.card(position).roles}
    ]
    found = [("multi_head", position) for position in serving]
    for name in ATTENTION:
        card = ATTENTION.card(name)
        played = [role for role in card.roles if role in roles]
        fitting = [
            position
            for position in serving
            if all(fits(card, role, POSITION.card(position)) for role in played)
        ]
        if played and (name, fitting[-1]) not in found:
            found.append((name, fitting[-1]))
    kinds = (((name, position), (base_class(name), position)) for name, position in found)
    return pytest.mark.parametrize(("name", "position"), mark_exhaustive(kinds))


def attention_factory(name: str) -> AttentionFactory:
    return partial(create_attention, name, **small_options(name))


def position_factory(name: str) -> PositionFactory:
    return partial(create_position, name, **small_options(name, "position"))


def language_model(name: str, position: str, **changes: int) -> LanguageModel:
    """As training starts it."""
    model = LanguageModel(
        attention=attention_factory(name), position=position_factory(position), **SIZES | changes
    )
    return model.eval()


def seq2seq(
    name: str, position: str, roles: Iterable[Role] | None = None, **changes: int
) -> Seq2Seq:
    """With the entry in some roles, or in all that it can play; plain attention in the others."""
    played = ATTENTION.card(name).roles if roles is None else roles

    def playing(role: Role) -> AttentionFactory:
        return attention_factory(name if role in played else "multi_head")

    return Seq2Seq(
        pad_id=PAD,
        encoder_attention=playing("global"),
        decoder_attention=playing("causal"),
        cross_attention=playing("cross"),
        position=position_factory(position),
        **SIZES | changes,
    ).eval()


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(1, VOCABULARY, (batch, length))


def source_and_target() -> tuple[Tensor, Tensor]:
    """Two sources, the second filled up with padding, and two targets."""
    source = tokens(2, 9)
    return source.masked_fill(~key_mask("right", 2, 9), PAD), tokens(2, 8)


def assert_every_parameter_is_used(model: nn.Module, logits: Tensor) -> None:
    """By the logits, or by a loss of the attention's own."""
    auxiliary = take_auxiliary_loss(model)
    (logits.sin().sum() + (0.0 if auxiliary is None else auxiliary)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.ne(0).any(), name


@pairs("causal")
def test_language_model_uses_every_parameter(name: str, position: str) -> None:
    model = language_model(name, position)
    logits = model.train()(tokens(2, 9))
    assert logits.shape == (2, 9, VOCABULARY)
    assert_every_parameter_is_used(model, logits)


@pairs("causal")
def test_language_model_does_not_see_the_future(name: str, position: str) -> None:
    model = moved(language_model(name, position))
    x = tokens(2, 67)
    whole = model(x)
    for prefix in (1, 7, 65):
        assert_same(model(x[:, :prefix]), whole[:, :prefix])


@pairs("causal")
def test_language_model_ignores_padding(name: str, position: str) -> None:
    """A row with padding at an end gives what its real tokens give alone."""
    model = moved(language_model(name, position))
    x = tokens(2, 9)
    if "key_mask" not in ATTENTION.card(name).masks:
        with pytest.raises(Unsupported, match="key_mask"):
            model(x, key_mask=key_mask("left", 2, 9))
        return
    for side in ("left", "right"):
        real = key_mask(side, 2, 9)
        alone = model(x[1][real[1]][None])
        assert_same(model(x, key_mask=real)[1][real[1]], alone[0])
    real = key_mask("interior", 2, 9)
    assert_same(model(x * real, key_mask=real)[real], model(x, key_mask=real)[real])


@pairs("causal")
def test_language_model_decodes_in_chunks(name: str, position: str) -> None:
    """Of prompts padded at the left, and with rows exchanged on the way."""
    model = moved(language_model(name, position))
    if not ATTENTION.card(name).cache:
        with pytest.raises(Unsupported, match="cached"):
            model.new_cache()
        return
    x, real = tokens(2, 12), key_mask("left", 2, 12)
    rows = torch.tensor([1, 0, 1])
    cache = model.new_cache()
    before = [
        model(x[:, start:stop], key_mask=real[:, :stop], cache=cache)
        for start, stop in pairwise([0, 5, 6, 8])
    ]
    assert cache.length == 8
    whole = model(x, key_mask=real)
    assert_same(torch.cat(before, dim=1), whole[:, :8])
    cache.reorder(rows)
    after = [
        model(x[rows, start:stop], key_mask=real[rows, :stop], cache=cache)
        for start, stop in pairwise([8, 9, 10, 12])
    ]
    assert_same(torch.cat(after, dim=1), whole[rows, 8:])


@pairs("causal")
def test_language_model_keeps_packed_documents_apart(name: str, position: str) -> None:
    model = moved(language_model(name, position))
    x, segment_ids = tokens(2, 9), packed([3, 1, 5], 2)
    if "segment_ids" not in ATTENTION.card(name).masks:
        with pytest.raises(Unsupported, match="segment_ids"):
            model(x, segment_ids=segment_ids)
        return
    real = torch.ones_like(segment_ids, dtype=torch.bool)
    # The first token of a document is padded, which must not shift the positions of the others.
    real[0, 4] = False
    together = model(x, segment_ids=segment_ids, key_mask=real)
    unpadded = model(x, segment_ids=segment_ids)
    for row, segment in torch.cartesian_prod(torch.arange(2), torch.arange(3)):
        own = segment_ids[row] == segment
        assert_same(unpadded[row, own], model(x[row, own][None])[0])
        own &= real[row]
        assert_same(together[row, own], model(x[row, own][None])[0])


@pairs("causal")
def test_language_model_shows_its_attention(name: str, position: str) -> None:
    maps = language_model(name, position).attention_maps(tokens(2, 9))
    assert list(maps) == ["decoder"] and len(maps["decoder"]) == LAYERS
    for weights in maps["decoder"]:
        assert weights.shape[0] == 2 and weights.shape[2:] == (9, 9)
        assert (weights.triu(1) == 0).all()


@pairs("causal", "global", "cross")
def test_seq2seq_uses_every_parameter(name: str, position: str) -> None:
    model = seq2seq(name, position)
    logits = model.train()(*source_and_target())
    assert logits.shape == (2, 8, VOCABULARY)
    assert_every_parameter_is_used(model, logits)


@pairs("causal", "global", "cross")
def test_seq2seq_ignores_padding_and_the_future(name: str, position: str) -> None:
    model = moved(seq2seq(name, position))
    source, target = source_and_target()
    whole = model(source, target)
    short = source[1:, source[1] != PAD]
    assert_same(model(short, target[1:]), whole[1:])
    assert_same(model(source, target[:, :5]), whole[:, :5])


@pairs("causal", "global", "cross")
def test_seq2seq_decodes_in_chunks(name: str, position: str) -> None:
    """With rows exchanged and repeated on the way."""
    model = moved(seq2seq(name, position))
    card = ATTENTION.card(name)
    if not card.cache and set(card.roles) != {"global"}:
        with pytest.raises(Unsupported, match="cached"):
            model.new_cache()
        return
    source, target = source_and_target()
    real = source != PAD
    memory = model.encode(source, real)
    rows = torch.tensor([1, 0, 1])
    cache = model.new_cache()
    before = [
        model.decode(target[:, start:stop], memory, real, cache=cache)
        for start, stop in pairwise([0, 1, 4, 6])
    ]
    assert cache.length == 6
    whole = model(source, target)
    assert_same(torch.cat(before, dim=1), whole[:, :6])
    cache.reorder(rows)
    after = [
        model.decode(target[rows, i : i + 1], memory[rows], real[rows], cache=cache) for i in (6, 7)
    ]
    assert_same(torch.cat(after, dim=1), whole[rows, 6:])


@pairs("causal", "global", "cross")
def test_seq2seq_shows_its_attention(name: str, position: str) -> None:
    maps = seq2seq(name, position).attention_maps(*source_and_target())
    sizes = {"encoder": (9, 9), "decoder": (8, 8), "cross": (8, 9)}
    assert set(maps) == set(sizes)
    for part, weights in maps.items():
        assert len(weights) == LAYERS
        for layer in weights:
            assert layer.shape[0] == 2 and layer.shape[2:] == sizes[part]
            if part != "decoder":
                assert (layer[1, :, :, -3:] == 0).all(), "the source's padding"


@pairs("causal", "global", "cross")
def test_layers_share_nothing_but_the_encoding(name: str, position: str) -> None:
    model = moved(seq2seq(name, position))
    stacks = {"encoder": model.encoder, "decoder": model.decoder}
    for stack in stacks.values():
        addresses = [p.data_ptr() for layer in stack.layers for p in layer.parameters()]
        assert len(addresses) == len(set(addresses))
        assert_encodings_are_where_the_card_says(stack, position)
    kept = [key for key in model.state_dict() if "position" in key.split(".")]
    assert kept == [
        f"{name}.position.{key}"
        for name, stack in stacks.items()
        for key in stack.position.state_dict()
    ]


def assert_encodings_are_where_the_card_says(stack: Encoder | Decoder, position: str) -> None:
    """One for the stack, or one for each layer, a part of its attention."""
    layers = [layer.self_attention.attention for layer in stack.layers]
    used = [attention.position for attention in layers]
    if POSITION.card(position).per_layer:
        assert all(attention.encoding is attention.position for attention in layers)
        assert len({id(encoding) for encoding in used}) == LAYERS
    else:
        assert all(encoding is stack.position for encoding in used)


@pairs("causal", "global", "cross")
def test_a_model_can_be_saved_and_copied(name: str, position: str) -> None:
    ours, theirs = seq2seq(name, position), seq2seq(name, position)
    batch = source_and_target()
    out = ours(*batch)
    theirs.load_state_dict(ours.state_dict())
    assert_same(theirs(*batch), out)
    twin = copy.deepcopy(ours)
    assert_same(twin(*batch), out)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert_same(ours(*batch), out)
    assert_encodings_are_where_the_card_says(twin.encoder, position)


@pytest.mark.parametrize(
    "position",
    mark_exhaustive((name, set(POSITION.card(name).acts) <= {"heads"}) for name in POSITION),
)
def test_the_whole_graph_of_a_language_model_compiles(position: str) -> None:
    torch.compiler.reset()
    model = language_model("multi_head", position)
    x, segment_ids = tokens(2, 9), packed([3, 1, 5], 2)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_same(compiled(x, segment_ids=segment_ids), model(x, segment_ids=segment_ids))


@pytest.mark.slow
def test_the_whole_graph_of_a_sequence_to_sequence_model_compiles() -> None:
    torch.compiler.reset()
    model = seq2seq("multi_head", "rotary")
    batch = source_and_target()
    assert_same(torch.compile(model, fullgraph=True, backend="eager")(*batch), model(*batch))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_tied_embeddings_are_one_parameter(tied: bool) -> None:
    plain = {"position": position_factory("none"), "tie_embeddings": tied, **SIZES}
    attention = attention_factory("multi_head")
    model = LanguageModel(attention=attention, **plain)
    assert (model.head.weight is model.embedding.weight) is tied
    roles = ("encoder_attention", "decoder_attention", "cross_attention")
    both = Seq2Seq(pad_id=PAD, **dict.fromkeys(roles, attention), **plain)
    tables = {id(part.weight) for part in (both.source_embedding, both.target_embedding, both.head)}
    assert len(tables) == (1 if tied else 3)
