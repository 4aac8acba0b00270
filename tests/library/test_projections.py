"""Models whose projections are convolved over tokens, and mixed with the first layer's values."""

from functools import partial
from typing import Any

import pytest
import torch

from attention_zoo import Unsupported, UserError, create_attention, create_position
from attention_zoo.attention.projections import FirstValues
from attention_zoo.capture import capture_attention
from attention_zoo.models import LanguageModel, Seq2Seq
from tests.conformance.cases import moved
from tests.conformance.numbers import assert_same

SIZES = {"vocabulary_size": 11, "dim": 16, "ffn_dim": 8, "dropout": 0.0}
BOTH: dict[str, Any] = {"qkv_convolution": 3, "value_residual": True}
ATTENTION = "decoder.layers.{}.self_attention.attention."


def factory(name: str = "multi_head", **options: Any) -> Any:
    return partial(create_attention, name, **{"heads": 2} | options)


def language_model(**options: Any) -> LanguageModel:
    chosen = {"layers": 3, "attention": factory(), "position": partial(create_position, "rotary")}
    return moved(LanguageModel(**SIZES, **chosen | BOTH | options))


def seq2seq(**options: Any) -> Seq2Seq:
    roles = ("encoder_attention", "decoder_attention", "cross_attention")
    chosen = {"layers": 2, "position": partial(create_position, "rotary")}
    return moved(
        Seq2Seq(**SIZES, pad_id=0, **dict.fromkeys(roles, factory()), **chosen | BOTH | options)
    )


def test_parameters_are_added_to_those_of_the_plain_model() -> None:
    plain = language_model(qkv_convolution=None, value_residual=False)
    model = language_model()
    added = {*model.state_dict()} - {*plain.state_dict()}
    convolutions = {
        f"{ATTENTION.format(layer)}{name}.convolution.weight"
        for layer in range(3)
        for name in ("query", "key", "value")
    }
    assert added == convolutions | {f"{ATTENTION.format(i)}value.mixing" for i in (1, 2)}
    assert {*plain.state_dict()} < {*model.state_dict()}
    assert model.get_parameter(f"{ATTENTION.format(1)}value.convolution.weight").shape == (16, 3)


def test_values_start_as_a_mean_and_nothing_else_is_drawn_anew() -> None:
    models = []
    for options in ({"value_residual": False}, {"value_residual": True}):
        torch.manual_seed(0)
        position = partial(create_position, "none")
        models.append(
            LanguageModel(**SIZES, layers=2, attention=factory(), position=position, **options)
        )
    plain, model = models
    state = model.state_dict()
    assert state.pop(f"{ATTENTION.format(1)}value.mixing").tolist() == [0.5, 0.5]
    assert all(torch.equal(x, state[name]) for name, x in plain.state_dict().items())


def test_the_key_of_a_head_is_convolved_before_its_norm_and_rotation() -> None:
    """With kernels that shift by one token, queries and keys are those of the token before."""
    options = {"layers": 1, "value_residual": False, "qkv_convolution": 2}
    model = language_model(attention=factory("qk_norm"), **options)
    attention = model.decoder.layers[0].self_attention.attention
    x = torch.randn(1, 7, 16)
    with torch.no_grad():
        for part in (attention.query, attention.key):
            part.convolution.weight[:, 0] = 1.0
            part.convolution.weight[:, 1] = -1.0
        attention.value.convolution.weight.zero_()
    own = factory("qk_norm")(dim=16, role="causal")
    own.load_state_dict(attention.state_dict(), strict=False)
    own.attach_position(model.decoder.position, shared=True)
    positions = torch.arange(6)[None] + 1
    earlier = own.project_query(x[:, :-1]), own.project_key_value(x[:, :-1])[0]
    q, k = own.apply_position(*earlier, positions)
    scores = q @ k.transpose(-2, -1) / 8**0.5
    # The first token has no query and no key but those of the bias, of which there is none.
    weights = attention.attention_map(x)[:, :, 1:]
    scores = torch.cat([torch.zeros_like(scores[..., :1]), scores], dim=-1)
    seen = torch.ones(6, 7, dtype=torch.bool).tril(1)
    assert_same(weights, scores.masked_fill(~seen, float("-inf")).softmax(dim=-1))


MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "input": {"input_convolution": 2},
    "window": {"attention": factory(window=3)},
    "shared": {"layers": 4, "share_kv": [None, 0, None, 2]},
    "side by side": {"attention": [(factory(), factory("multi_query"))] * 3},
    "mixed": {
        "attention": [factory(), factory("linear"), factory("differential")],
        "position": partial(create_position, "none"),
    },
    "convolves itself": {
        "attention": [factory("multi_head"), factory("gated_delta"), factory("kimi_delta")],
        "position": partial(create_position, "none"),
        "qkv_convolution": None,
    },
}
every_model = pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)


@every_model
def test_models_are_decoded_in_chunks(options: dict[str, Any]) -> None:
    model = language_model(**options)
    tokens = torch.randint(11, (2, 9))
    key_mask = torch.ones(2, 9, dtype=torch.bool)
    key_mask[1, :4] = False
    cache = model.new_cache()
    parts = []
    for chunk in tokens.split([5, 1, 1, 2], dim=1):
        stop = cache.length + chunk.shape[1]
        parts.append(model(chunk, key_mask=key_mask[:, :stop], cache=cache))
    whole = model(tokens, key_mask=key_mask)
    assert_same(torch.cat(parts, dim=1)[key_mask], whole[key_mask])
    assert_same(whole[1:, 4:], model(tokens[1:, 4:]))
    cache.reorder(torch.tensor([1, 0]))
    new = torch.randint(11, (2, 1))
    swapped = torch.cat([tokens.flip(0), new], dim=1)
    key_mask = torch.cat([key_mask.flip(0), torch.ones(2, 1, dtype=torch.bool)], dim=1)
    assert_same(
        model(new, key_mask=key_mask, cache=cache), model(swapped, key_mask=key_mask)[:, -1:]
    )


@every_model
@pytest.mark.slow
def test_one_graph_checkpointing_and_maps(options: dict[str, Any]) -> None:
    """All parameters learn, also where layers are computed again for the backward pass."""
    model = language_model(**options)
    tokens = torch.randint(11, (2, 7))
    expected = model(tokens)
    with capture_attention(model) as captured:
        assert_same(model(tokens), expected)
    assert len(captured) == sum(len(x.self_attention.branches) for x in model.decoder.layers)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    for length in (7, 12):
        own = torch.randint(11, (2, length))
        assert_same(compiled(own), model(own))
    expected.square().sum().backward()
    gradients = [x.grad for x in model.parameters()]
    assert all(x is not None for x in gradients)
    model.zero_grad()
    for layer in model.decoder.layers:
        again = partial(torch.utils.checkpoint.checkpoint, layer.forward, use_reentrant=False)
        layer.forward = again
    model(tokens).square().sum().backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert_same(parameter.grad, gradient)


def test_a_reading_layer_convolves_its_queries_alone() -> None:
    model = language_model(layers=3, share_kv=[None, 0, None])
    first, reader, last = (x.self_attention.attention for x in model.decoder.layers)
    names = {name for name, _ in reader.named_parameters()}
    assert names == {"query.weight", "query.convolution.weight", "output.weight"}
    assert last.value.mixing is not None and first.value.mixing is None


def test_encoder_and_decoder_mix_values_of_their_own_first_layers() -> None:
    model = seq2seq()
    names = {name for name, _ in model.named_parameters() if "convolution" in name}
    assert len(names) == 2 * 2 * 3
    assert not any("cross" in name for name in names)
    mixing = [name for name, _ in model.named_parameters() if "mixing" in name]
    assert [name.split(".")[0] for name in mixing] == ["encoder", "decoder"]
    source, target = torch.randint(1, 11, (2, 5)), torch.randint(1, 11, (2, 6))
    source[1, 3:] = 0
    whole = model(source, target)
    cache, source_mask = model.new_cache(), source != 0
    memory = model.encode(source, source_mask)
    parts = [model.decode(x, memory, source_mask, cache=cache) for x in target.split(2, dim=1)]
    assert_same(torch.cat(parts, dim=1), whole)
    assert_same(whole[1:], model(source[1:, :3], target[1:]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": 1}, "needs another layer with values of its own, got layers=1"),
        ({"layers": 2, "share_kv": [None, 0]}, "needs another layer with values of its own"),
        (
            {"layers": 2, "attention": [factory(), factory("multi_query")]},
            "layer 1: value_residual mixes values of the same width only, got 8 as that of value "
            "in multi_query, and 16 in multi_head, which layer 0 has",
        ),
        (
            {"layers": 2, "attention": [factory(), (factory(), factory())]},
            "layer 1: value_residual needs as many mechanisms side by side",
        ),
        (
            {
                "layers": 2,
                "attention": [factory(), partial(create_attention, "gru")],
                "qkv_convolution": None,
            },
            "layer 1: gru, in layer 1, does not project each token to a value",
        ),
        (
            {"layers": 2, "attention": [factory("multi_head_latent"), factory()]}
            | {"qkv_convolution": None},
            "layer 1: multi_head_latent, in layer 0, does not project each token to a value",
        ),
        (
            {"layers": 2, "attention": [factory(), factory("gated_delta")]},
            "layer 1: gated_delta convolves its projections itself: set its kernel_size",
        ),
        ({"qkv_convolution": 0}, "qkv_convolution must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_extended_is_refused(options: dict[str, Any], words: str) -> None:
    position = partial(create_position, "none")
    with pytest.raises(UserError, match=words):
        language_model(**{"position": position} | options)


def test_a_layer_that_mixes_values_is_not_called_alone() -> None:
    attention = language_model().decoder.layers[1].self_attention.attention
    x = torch.randn(1, 3, 16)
    for call in (attention, attention.attention_map, attention.values):
        with pytest.raises(UserError, match="Call the model, not the layer"):
            call(x)
        with pytest.raises(UserError, match="mixes the values of the first layer"):
            call(x, first_values=FirstValues())
    with pytest.raises(Unsupported, match="global attention"):
        seq2seq().encoder.layers[0].self_attention.attention.new_cache()


@pytest.mark.parametrize("windows", [(4, None, 4), (None, 4, None)])
def test_padding_inside_a_row_is_left_out_where_some_layers_put_it_out_of_the_way(
    windows: tuple[int | None, ...],
) -> None:
    """Layers with a window order their rows anew, and mix values of a layer that does not."""
    model = language_model(attention=[factory(window=window) for window in windows]).eval()
    tokens = torch.randint(1, 11, (1, 13))
    own = torch.tensor([0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1]).bool()
    padded = model(tokens, key_mask=own[None])
    assert_same(padded[:, own], model(tokens[:, own]))
