"""The parts of models against their formulas, and what they refuse."""

import math
from functools import partial
from typing import get_args

import pytest
import torch

from attention_zoo import Unsupported, UserError, create_attention, create_position
from attention_zoo.masks import Mask
from attention_zoo.models import LanguageModel, Seq2Seq
from attention_zoo.models.activations import Activation
from attention_zoo.models.blocks import AttentionSublayer, BlockOptions, FeedForward
from attention_zoo.models.language_model import positions_in_row
from tests.conformance.numbers import assert_same

PLAIN = partial(create_attention, "multi_head", heads=2)
SIZES = {"vocabulary_size": 7, "dim": 8, "ffn_dim": 16, "layers": 1}


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("activation", get_args(Activation))
def test_feed_forward(activation: str, norm: str, order: str) -> None:
    options = BlockOptions(
        dim=8, ffn_dim=16, activation=activation, norm=norm, norm_order=order, dropout=0.0
    )
    block = FeedForward(options)
    torch.nn.init.normal_(block.expand.weight, std=4.0)  # Some exceed the clamp.
    x = torch.randn(2, 3, 8)

    def normed(y: torch.Tensor) -> torch.Tensor:
        if norm == "rms":
            return y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return (y - y.mean(-1, keepdim=True)) / (
            y.var(-1, correction=0, keepdim=True) + 1e-5
        ).sqrt()

    middle = block.expand(normed(x) if order == "pre" else x)
    gate, other = middle[..., :16], middle[..., 16:]
    if activation == "swiglu":
        middle = gate / (1 + torch.exp(-gate)) * other
    elif activation == "geglu_tanh":
        inner = (2 / math.pi) ** 0.5 * (gate + 0.044715 * gate**3)
        middle = gate * (1 + torch.tanh(inner)) / 2 * other
    elif activation == "clamped_swiglu":
        assert (gate > 7).any() and (other.abs() > 7).any()
        gate, other = gate.minimum(torch.tensor(7.0)), other.clamp(-7, 7)
        middle = gate / (1 + torch.exp(-1.702 * gate)) * (other + 1)
    elif activation == "silu":
        middle = middle / (1 + torch.exp(-middle))
    elif activation == "gelu":
        middle = middle * (1 + torch.erf(middle / 2**0.5)) / 2
    else:
        middle = middle.clamp(min=0) ** (2 if activation == "relu_squared" else 1)
    out = x + block.contract(middle)
    assert_same(block(x), out if order == "pre" else normed(out))


@pytest.mark.parametrize("order", ["pre", "post", "sandwich", "res_post"])
def test_residual_and_norm_stand_around_attention(order: str) -> None:
    options = BlockOptions(dim=8, ffn_dim=16, norm_order=order, dropout=0.0)
    x, context = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    for block, other in (
        (AttentionSublayer(PLAIN, options, role="causal", layer=0), ()),
        (AttentionSublayer(PLAIN, options, role="cross", layer=0), (context,)),
    ):
        for norm in (block.norm, getattr(block, "output_norm", None)):
            if norm is not None:  # Norms start with ones, which would hide an exchange.
                torch.nn.init.uniform_(norm.weight)
        if order == "pre":
            expected = x + block.attention(block.norm(x), *other)
        elif order == "post":
            expected = block.norm(x + block.attention(x, *other))
        elif order == "sandwich":
            expected = x + block.output_norm(block.attention(block.norm(x), *other))
        else:
            expected = x + block.norm(block.attention(x, *other))
        assert_same(block(x, *other), expected)


def test_attention_and_feed_forward_in_parallel_read_the_same_norm() -> None:
    model = LanguageModel(
        attention=PLAIN,
        position=partial(create_position, "none"),
        parallel_feed_forward=True,
        dropout=0.0,
        **SIZES,
    )
    layer = model.decoder.layers[0]
    x = torch.randn(2, 5, 8)
    y = layer.self_attention.norm(x)
    feed_forward = layer.feed_forward
    middle = torch.nn.functional.gelu(feed_forward.expand(y))
    expected = x + layer.self_attention.attention(y) + feed_forward.contract(middle)
    assert_same(layer(x, mask=Mask(), positions=torch.arange(5)[None]), expected)
    assert not [*feed_forward.norm.parameters()]


def test_parallel_layers_need_self_attention_and_a_feed_forward() -> None:
    options = {"parallel_feed_forward": True, "position": partial(create_position, "none")}
    roles = ("encoder_attention", "decoder_attention", "cross_attention")
    with pytest.raises(Unsupported, match="got cross-attention"):
        Seq2Seq(pad_id=0, **dict.fromkeys(roles, PLAIN), **SIZES, **options)
    with pytest.raises(Unsupported, match="got ffn_dim=None"):
        LanguageModel(attention=PLAIN, **SIZES | {"ffn_dim": None}, **options)


def test_logits_have_a_scale_a_bias_and_a_cap() -> None:
    model = LanguageModel(
        attention=PLAIN,
        position=partial(create_position, "none"),
        scale_embedding=False,
        logit_scale=0.5,
        logit_bias=True,
        logit_cap=2.0,
        **SIZES,
    )
    tokens, x = torch.randint(7, (2, 5)), torch.randn(2, 5, 8)
    torch.nn.init.normal_(model.head.bias)
    logits = (x @ model.embedding.weight.T + model.head.bias) / 2
    assert_same(model.head(x), 2 * torch.tanh(logits / 2))
    assert_same(model.embedding(tokens), model.embedding.weight[tokens])


@pytest.mark.parametrize("order", ["pre", "post", "sandwich", "res_post"])
def test_a_stack_ends_normed(order: str) -> None:
    model = LanguageModel(
        attention=PLAIN,
        position=partial(create_position, "none"),
        norm_order=order,
        **SIZES | {"layers": 3},
    )
    model.head = torch.nn.Identity()
    out = model(torch.randint(7, (2, 9)))
    assert_same(out.mean(-1), torch.zeros(2, 9))
    assert ((out.var(-1, correction=0) - 1).abs() < 1e-3).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"activation": "mish"}, "activation must be one of relu, .*, got 'mish'"),
        ({"norm": "batch"}, "norm must be one of layer, layer_no_bias, rms, got 'batch'"),
        ({"norm_order": "both"}, "norm_order must be one of pre, post, .*, got 'both'"),
        ({"norm_epsilon": 0.0}, "norm_epsilon must be above 0, got 0.0"),
        ({"logit_cap": -1.0}, "logit_cap must be above 0, got -1.0"),
        ({"logit_scale": 0.0}, "logit_scale must be above 0, got 0.0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"ffn_dim": 0}, "ffn_dim must be at least 1, got 0"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
    ],
)
def test_wrong_sizes_are_refused(wrong: dict[str, object], message: str) -> None:
    position = partial(create_position, "none")
    with pytest.raises(UserError, match=message):
        LanguageModel(attention=PLAIN, position=position, **SIZES | wrong)
    roles = ("encoder_attention", "decoder_attention", "cross_attention")
    with pytest.raises(UserError, match=message):
        Seq2Seq(pad_id=0, position=position, **dict.fromkeys(roles, PLAIN), **SIZES | wrong)


def test_encoder_and_decoder_can_differ_in_depth() -> None:
    roles = ("encoder_attention", "decoder_attention", "cross_attention")
    model = Seq2Seq(
        pad_id=0,
        position=partial(create_position, "none"),
        encoder_layers=3,
        decoder_layers=2,
        **dict.fromkeys(roles, PLAIN),
        **SIZES,
    )
    assert (len(model.encoder.layers), len(model.decoder.layers)) == (3, 2)


def test_a_source_may_have_several_targets() -> None:
    roles = ("encoder_attention", "decoder_attention", "cross_attention")
    model = Seq2Seq(
        pad_id=0, position=partial(create_position, "none"), **dict.fromkeys(roles, PLAIN), **SIZES
    ).eval()
    source, target = torch.tensor([[3, 4, 5], [6, 2, 0]]), torch.randint(1, 7, (6, 4))
    mask = source != 0
    memory = model.encode(source, mask)
    repeated = (x.repeat_interleave(3, dim=0) for x in (memory, mask))
    torch.testing.assert_close(model.decode(target, memory, mask), model.decode(target, *repeated))
    with pytest.raises(UserError, match=r"as many for each, got 5 rows for 2\."):
        model.decode(target[:5], memory, mask)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 3), "must be boolean"),
        (torch.ones(2, 4, dtype=torch.bool), "a column for each of 3 tokens, got 4"),
        (torch.ones(3, 3, dtype=torch.bool), "a row for each of 2 sequences"),
        ([[True] * 3] * 2, "must be a tensor"),
    ],
)
def test_the_mask_of_whole_sources_is_looked_at(mask: torch.Tensor, message: str) -> None:
    roles = ("encoder_attention", "decoder_attention", "cross_attention")
    model = Seq2Seq(
        pad_id=0, position=partial(create_position, "none"), **dict.fromkeys(roles, PLAIN), **SIZES
    ).eval()
    source, target = torch.tensor([[3, 4, 5], [6, 2, 1]]), torch.randint(1, 7, (2, 4))
    memory = model.encode(source, source != 0)
    with pytest.raises(UserError, match=message):
        model.decode(target, memory, mask, cache=model.new_cache())
    decoded = model.decode(target, memory, source != 0, cache=model.new_cache())
    assert_same(decoded, model.decode(target, memory, None, cache=model.new_cache()))
    assert_same(decoded, model.decode(target, memory, source != 0))


def test_dropout_acts_in_training_only() -> None:
    model = LanguageModel(
        attention=PLAIN, position=partial(create_position, "none"), dropout=0.5, **SIZES
    )
    tokens = torch.randint(7, (2, 9))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    expected = model(tokens)
    assert torch.equal(model(tokens), expected)
    model.train()
    for module in [*model.modules()]:
        if isinstance(getattr(module, "dropout", None), torch.nn.Module):
            module.dropout = torch.nn.Identity()
    assert_same(model(tokens), expected)


def test_logits_are_given_at_the_places_that_are_asked_for() -> None:
    model = LanguageModel(
        attention=PLAIN, position=partial(create_position, "none"), dropout=0.0, **SIZES
    )
    tokens = torch.randint(7, (2, 9))
    positions = torch.tensor([[8, 0, 3], [2, 2, 7]])
    found = model(tokens, target_positions=positions)
    whole = model(tokens)
    assert found.shape == (2, 3, whole.shape[-1])
    for row in range(2):
        assert_same(found[row], whole[row, positions[row]])


def test_places_are_counted_over_real_tokens_of_a_document() -> None:
    real = torch.tensor([[0, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 0]], dtype=torch.bool)
    segment_ids = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 1, 2, 2, 2]])
    cpu = torch.device("cpu")
    assert positions_in_row(None, None, 3, cpu).tolist() == [[0, 1, 2]]
    ours = positions_in_row(real, None, 6, cpu)
    assert ours[real].tolist() == [0, 1, 2, 0, 1, 2]
    assert positions_in_row(None, segment_ids, 6, cpu).tolist() == [
        [0, 1, 2, 0, 1, 2],
        [0, 0, 1, 0, 1, 2],
    ]
    ours = positions_in_row(real, segment_ids, 6, cpu)
    assert ours[real].tolist() == [0, 0, 1, 0, 0, 1]
    assert (ours >= 0).all()


@pytest.mark.parametrize("role", ["causal", "cross"])
def test_a_context_is_for_cross_attention(role: str) -> None:
    attention = PLAIN(dim=8, role=role)
    x = torch.randn(2, 3, 8)
    with pytest.raises(UserError, match="context"):
        attention(x, None if role == "cross" else x)


@pytest.mark.parametrize("field", ["key_mask", "segment_ids"])
def test_a_mask_of_another_length_is_refused(field: str) -> None:
    """Also one that would broadcast, as that of the newest token alone."""
    attention = PLAIN(dim=8, role="causal")
    cache = attention.new_cache()
    attention(torch.randn(2, 3, 8), cache=cache)
    for width in (1, 3, 5):
        part = torch.ones(2, width, dtype=torch.bool)
        with pytest.raises(UserError, match=f"{field} must have .* 4 tokens, got {width}"):
            attention(torch.randn(2, 1, 8), mask=Mask(**{field: part}), cache=cache)
