"""Layers of a stack that read the keys and values of earlier ones."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_zoo import Unsupported, UserError, create_attention, create_position
from attention_zoo.caches import LayeredCache
from attention_zoo.capture import capture_attention
from attention_zoo.models import LanguageModel, Seq2Seq
from attention_zoo.zoo import ATTENTION
from tests.conformance.cases import moved, small_options
from tests.conformance.numbers import assert_same
from tests.conformance.test_caches import numbers_in

ROTARY = partial(create_position, "rotary")
SIZES = {"vocabulary_size": 11, "dim": 16, "ffn_dim": 8, "dropout": 0.0}
MECHANISMS = [
    ("grouped_query", {"heads": 4, "kv_heads": 2}),
    ("grouped_query", {"heads": 4, "kv_heads": 2, "window": 3}),
    ("qk_norm", {"heads": 2}),
    ("attention_sink", {"heads": 2, "window": 3}),
    ("multi_head_latent", {"heads": 2}),
    ("forgetting", {"heads": 2}),
    ("differential", {"heads": 2}),
    ("additive", {"heads": 2}),
    ("strided_sparse", {"heads": 2, "stride": 2}),
]
every_mechanism = pytest.mark.parametrize(("name", "options"), MECHANISMS, ids=str)


def factory(name: str = "multi_head", **options: Any) -> Any:
    return partial(create_attention, name, **{"heads": 2} | options)


def language_model(attention: Any, share_kv: Any, position: Any = ROTARY) -> LanguageModel:
    return moved(
        LanguageModel(
            **SIZES,
            layers=len(share_kv),
            attention=attention,
            position=position,
            share_kv=share_kv,
        )
    )


def takes_rotary(name: str) -> bool:
    return name != "additive"


def encoding(name: str) -> Any:
    return ROTARY if takes_rotary(name) else partial(create_position, "alibi")


@every_mechanism
def test_a_reading_layer_is_one_with_the_inputs_and_weights_of_its_source(
    name: str, options: dict[str, Any]
) -> None:
    """The second layer is computed by an attention whose keys and values come from other inputs.

    Queries come from the reader, so that an own attention on [source; x] would not do: each query
    is put at the end of the source's inputs, by which its own key is hidden.
    """
    model = language_model(factory(name, **options), [None, 0], encoding(name))
    tokens = torch.randint(11, (2, 9))
    source, reader = (layer.self_attention for layer in model.decoder.layers)
    inputs: dict[str, Tensor] = {}
    for part, label in ((source, "source"), (reader, "reader")):
        part.attention.register_forward_pre_hook(
            lambda _, args, label=label: inputs.__setitem__(label, args[0])
        )
    outputs: list[Tensor] = []
    reader.attention.register_forward_hook(lambda _, args, out: outputs.append(out))
    model(tokens)
    own = factory(name, **options)(dim=16, role="causal", layer=1)
    own.attach_position(model.decoder.position, shared=True)
    missing, unexpected = own.load_state_dict(reader.attention.state_dict(), strict=False)
    assert not unexpected
    assert {x.split(".")[0] for x in missing} == {*own.kv_modules}
    for module in own.kv_modules:
        own.get_submodule(module).load_state_dict(
            source.attention.get_submodule(module).state_dict()
        )
    # Keys and values that the source's inputs have, whatever the queries come from.
    of_source = own.project_key_value
    own.project_key_value = lambda _: of_source(inputs["source"])
    features = own.extra_features
    own.extra_features = lambda _: features(inputs["source"])
    assert_same(outputs[0], own(inputs["reader"]))


def test_equal_inputs_and_weights_make_an_own_layer() -> None:
    """Two layers that get the same inputs, as nothing is added between them."""
    shared = language_model(factory(), [None, 0])
    own = language_model(factory(), [None, None])
    own.load_state_dict(shared.state_dict(), strict=False)
    for layer in own.decoder.layers, shared.decoder.layers:
        nn.init.zeros_(layer[0].self_attention.attention.output.weight)
        for part in layer[0].feed_forward.contract.parameters():
            nn.init.zeros_(part)
        for part in layer:
            nn.init.ones_(part.self_attention.norm.weight)
            nn.init.zeros_(part.self_attention.norm.bias)
    first, second = (x.self_attention.attention for x in own.decoder.layers)
    second.key, second.value = first.key, first.value
    tokens = torch.randint(11, (2, 9))
    assert_same(shared(tokens), own(tokens))


def decode(
    model: LanguageModel, tokens: Tensor, key_mask: Tensor, chunks: list[int]
) -> tuple[Tensor, LayeredCache]:
    """Return the logits of tokens that come in chunks, and the cache after them."""
    cache, parts = model.new_cache(), []
    for chunk in tokens.split(chunks, dim=1):
        stop = cache.length + chunk.shape[1]
        parts.append(model(chunk, key_mask=key_mask[:, :stop], cache=cache))
    return torch.cat(parts, dim=1), cache


@pytest.mark.parametrize("padding", [[0, 1, 2], [0, 3, 7, 9]], ids=str)
@every_mechanism
def test_chunks_are_one_pass(name: str, options: dict[str, Any], padding: list[int]) -> None:
    model = language_model(factory(name, **options), [None, 0, None, 2, 0], encoding(name))
    tokens = torch.randint(11, (2, 12))
    key_mask = torch.ones(2, 12, dtype=torch.bool)
    key_mask[1, padding] = False
    decoded, _ = decode(model, tokens, key_mask, [4, 1, 1, 6])
    whole = model(tokens, key_mask=key_mask)
    assert_same(decoded, whole)
    real = key_mask[1]
    assert_same(whole[1:, real], model(tokens[1:, real]))


@pytest.mark.parametrize("name", [*ATTENTION])
def test_every_entry_shares_or_refuses(name: str) -> None:
    """What a reading layer keeps is used; what is not used is dropped, or sharing is refused."""
    card = ATTENTION.card(name)
    if "causal" not in card.roles:
        pytest.skip("no causal attention")
    attention = partial(create_attention, name, **small_options(name))
    none = partial(create_position, "none")
    try:
        model = language_model(attention, [None, 0], none)
    except Unsupported as refusal:
        assert "no keys and values" in str(refusal)
        return
    tokens = torch.randint(11, (2, 7))
    out = model(tokens)
    out.square().sum().backward()
    unused = {name for name, x in model.decoder.named_parameters() if x.grad is None}
    assert not unused
    if not card.cache:
        return
    cache = model.new_cache()
    parts = [model(part, cache=cache) for part in tokens.split([3, 1, 3], dim=1)]
    assert_same(torch.cat(parts, dim=1), out)


def test_the_cache_is_stored_once_and_reordered_once() -> None:
    model = language_model(factory(), [None, 0, 0])
    tokens = torch.randint(11, (2, 6))
    cache = model.new_cache()
    model(tokens[:, :4], cache=cache)
    sources = [layer.self_attention.attention for layer in model.decoder.layers]
    numbers = sum(x[0].numel() for x in numbers_in(cache))
    assert numbers == sources[0].decode_state(4)
    assert sources[1].decode_state(4) == sources[2].decode_state(4) == 0
    rows = torch.tensor([1, 1, 0])
    cache.reorder(rows)
    swapped = torch.cat([tokens[rows, :4], tokens[rows, 4:]], dim=1)
    assert_same(model(swapped[:, 4:], cache=cache), model(swapped)[:, 4:])


def test_parameters_are_those_of_queries_and_outputs() -> None:
    first, second = language_model(factory("qk_norm"), [None, 0]).decoder.layers
    names = {name.split(".")[0] for name, _ in second.self_attention.attention.named_parameters()}
    assert names == {"query", "query_norm", "output"}
    assert "key" in dict(first.self_attention.attention.named_children())


@pytest.mark.parametrize("position", ["rotary", "alibi", "dynamic_ntk", "fire"])
def test_maps_are_the_weights(position: str) -> None:
    options = {"original_length": 4} if position == "dynamic_ntk" else {}
    encoding = partial(create_position, position, **options)
    model = language_model(factory(), [None, 0], encoding)
    tokens = torch.randint(11, (1, 7))
    expected = model(tokens)
    with capture_attention(model) as captured:
        assert_same(model(tokens), expected)
    assert [x.name for x in captured] == [
        f"decoder.layers.{i}.self_attention.attention" for i in range(2)
    ]
    assert all((x.weights.sum(-1) - 1).abs().max() < 1e-9 for x in captured)
    assert (captured[0].weights - captured[1].weights).abs().max() > 1e-4


def test_encoder_decoder_and_cross_attention() -> None:
    model = moved(
        Seq2Seq(
            **SIZES,
            pad_id=0,
            layers=2,
            encoder_attention=factory(),
            decoder_attention=factory(),
            cross_attention=factory(),
            position=ROTARY,
            encoder_share_kv=[None, 0],
            decoder_share_kv=[None, 0],
            cross_share_kv=[None, 0],
        )
    )
    source = torch.randint(1, 11, (2, 5))
    source[1, 3:] = 0
    target = torch.randint(1, 11, (2, 6))
    mask = source != 0
    memory = model.encode(source, mask)
    cache = model.new_cache()
    parts = [model.decode(x, memory, mask, cache=cache) for x in target.split([2, 1, 3], 1)]
    assert_same(torch.cat(parts, dim=1), model(source, target))
    assert {*model.attention_maps(source, target)} == {"encoder", "decoder", "cross"}
    model(source, target).sum().backward()
    assert all(x.grad is not None for x in model.parameters())


def test_no_tokens() -> None:
    model = language_model(factory(), [None, 0])
    cache = model.new_cache()
    assert model(torch.zeros(2, 0, dtype=torch.long), cache=cache).shape == (2, 0, 11)
    tokens = torch.randint(11, (2, 5))
    model(tokens[:, :3], cache=cache)
    model(tokens[:, :0], cache=cache)
    assert_same(model(tokens[:, 3:], cache=cache), model(tokens)[:, 3:])


@pytest.mark.slow
def test_one_graph_and_checkpointing() -> None:
    model = language_model(factory("grouped_query", heads=4, kv_heads=2, window=3), [None, 0, 0])
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    for length in (7, 12):
        tokens = torch.randint(11, (2, length))
        assert_same(compiled(tokens), model(tokens))
    model(tokens).square().sum().backward()
    expected = [x.grad.clone() for x in model.parameters()]
    model.zero_grad()
    for layer in model.decoder.layers:
        forward = layer.forward
        layer.forward = partial(torch.utils.checkpoint.checkpoint, forward, use_reentrant=False)
    model(tokens).square().sum().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert_same(parameter.grad, gradient)


@pytest.mark.parametrize(
    ("attention", "share_kv", "position", "words"),
    [
        (factory("retention"), [None, 0], "none", "layer 1: retention has no keys and values"),
        (factory("tensor_product"), [None, 0], "none", "layer 1: tensor_product has no keys"),
        ([factory(), factory("gated")], [None, 0], "none", "multi_head, which layer 0 has"),
        (
            [factory("grouped_query", kv_heads=n) for n in (1, 2)],
            [None, 0],
            "none",
            "layer 1: .*same sizes only, got key.weight=",
        ),
        ([factory(window=n) for n in (3, 4)], [None, 0], "none", "window=4, and 3 in layer 0"),
        (factory(), [None, 0], "polar", "position=polar acts on keys"),
        ([factory(), (factory(), factory())], [None, 0], "none", "side by side"),
        (factory(), [0, None], "none", "share_kv must name an earlier layer"),
        (factory(), [None, 0, 1], "none", "share_kv must name an earlier layer"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    attention: Any, share_kv: Any, position: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        language_model(attention, share_kv, partial(create_position, position))


def test_a_reading_layer_alone_is_refused() -> None:
    reader = language_model(factory(), [None, 0]).decoder.layers[1].self_attention.attention
    with pytest.raises(UserError, match="reads the keys and values of another"):
        reader(torch.randn(1, 3, 16))
    with pytest.raises(Unsupported, match="no values of its own"):
        reader.values(torch.randn(1, 3, 16))
    with pytest.raises(UserError, match="an entry for each of 2 layers"):
        LanguageModel(**SIZES, layers=2, attention=factory(), position=ROTARY, share_kv=[None])


def convolved_model(**options: Any) -> LanguageModel:
    sizes = {"layers": 2, "attention": factory(), "position": ROTARY} | options
    return moved(LanguageModel(**SIZES, **sizes, input_convolution=3))


def test_a_convolution_mixes_what_attention_reads() -> None:
    model = convolved_model(layers=1)
    sublayer = model.decoder.layers[0].self_attention
    x = torch.randn(2, 5, 16)
    normed = sublayer.norm(x)
    mixed = normed.clone()
    for t in range(5):
        for lag in range(min(3, t + 1)):
            mixed[:, t] += sublayer.convolution.weight[:, 2 - lag] * normed[:, t - lag]
    assert_same(sublayer(x), x + sublayer.attention(mixed))
    plain = LanguageModel(**SIZES, layers=1, attention=factory(), position=ROTARY)
    names = {*model.state_dict()} - {*plain.state_dict()}
    assert names == {"decoder.layers.0.self_attention.convolution.weight"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": 3, "share_kv": [None, 0, 0]},
        {"attention": factory("gated_delta"), "position": partial(create_position, "none")},
        {"attention": [(factory(), factory("multi_query")), factory()]},
    ],
    ids=["own", "shared", "recurrent", "side by side"],
)
def test_convolutions_are_decoded_in_chunks(options: dict[str, Any]) -> None:
    model = convolved_model(**options)
    tokens = torch.randint(11, (2, 9))
    key_mask = torch.ones(2, 9, dtype=torch.bool)
    key_mask[1, :4] = False
    decoded, cache = decode(model, tokens, key_mask, [5, 1, 1, 2])
    whole = model(tokens, key_mask=key_mask)
    assert_same(decoded[key_mask], whole[key_mask])
    assert_same(whole[1:, 4:], model(tokens[1:, 4:]))
    cache.reorder(torch.tensor([1, 0]))
    new = torch.randint(11, (2, 1))
    swapped = torch.cat([tokens.flip(0), new], dim=1)
    key_mask = torch.cat([key_mask.flip(0), torch.ones(2, 1, dtype=torch.bool)], dim=1)
    assert_same(
        model(new, key_mask=key_mask, cache=cache), model(swapped, key_mask=key_mask)[:, -1:]
    )


def test_a_convolution_stays_within_a_segment() -> None:
    model = convolved_model()
    tokens = torch.randint(11, (1, 9))
    segment_ids = torch.tensor([[0] * 4 + [1] * 5])
    packed = model(tokens, segment_ids=segment_ids)
    assert_same(packed[:, :4], model(tokens[:, :4]))
    assert_same(packed[:, 4:], model(tokens[:, 4:]))
