"""Against PyTorch's own attention and Transformer layers."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from attention_zoo import create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.masks import Mask
from attention_zoo.models.blocks import BlockOptions, FeedForward
from attention_zoo.models.stacks import TransformerLayer
from tests.conformance.definition import key_mask
from tests.conformance.numbers import assert_same

DIM, HEADS, HIDDEN = 16, 4, 32
ATTENTION = partial(create_attention, "multi_head", heads=HEADS, bias=True)
QUERIES, KEYS = 5, 7
POSITIONS = torch.arange(KEYS)


def copy_attention(ours: Attention, theirs: nn.MultiheadAttention) -> None:
    """Their three input projections are one matrix, and their biases start from zero."""
    with torch.no_grad():
        theirs.in_proj_bias.normal_()
        theirs.out_proj.bias.normal_()
        parts = (ours.query, ours.key, ours.value)
        weights, biases = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)
        for part, weight, bias in zip(parts, weights, biases, strict=True):
            part.weight.copy_(weight)
            part.bias.copy_(bias)
    ours.output.load_state_dict(theirs.out_proj.state_dict())


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("role", ["causal", "global", "cross"])
def test_multi_head_attention(role: str, padded: bool) -> None:
    """Their masks say True where a key is blocked, ours where it may be seen."""
    ours = ATTENTION(dim=DIM, role=role)
    theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    copy_attention(ours, theirs)
    x = torch.randn(2, QUERIES if role == "cross" else KEYS, DIM)
    context = torch.randn(2, KEYS, DIM) if role == "cross" else None
    source = x if context is None else context
    real = key_mask("right", 2, KEYS) if padded else None
    expected, weights = theirs(
        x,
        source,
        source,
        key_padding_mask=None if real is None else ~real,
        attn_mask=POSITIONS[None, :] > POSITIONS[:, None] if role == "causal" else None,
        average_attn_weights=False,
    )
    assert_same(ours(x, context, mask=Mask(key_mask=real)), expected)
    assert_same(ours.attention_map(x, context, mask=Mask(key_mask=real)), weights)


@pytest.mark.parametrize("role", ["causal", "global"])
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_single_head_attention(role: str, backend: str) -> None:
    ours = create_attention("single_head", dim=DIM, role=role, backend=backend)
    x = torch.randn(2, KEYS, DIM)
    q, k, v = ours.query(x), ours.key(x), ours.value(x)
    expected = ours.output(scaled_dot_product_attention(q, k, v, is_causal=role == "causal"))
    assert_same(ours(x), expected)


def test_grouped_heads_stand_beside_each_other() -> None:
    """As SDPA's `enable_gqa` groups them: the first h / g query heads share the first pair."""
    ours = create_attention(
        "grouped_query", dim=DIM, heads=HEADS, kv_heads=2, role="global", backend="reference"
    )
    x = torch.randn(2, KEYS, DIM)
    q, (k, v) = ours.project_query(x), ours.project_key_value(x)
    expected = ours.project_output(scaled_dot_product_attention(q, k, v, enable_gqa=True), x)
    assert_same(ours(x), expected)


def copy_feed_forward(
    ours: FeedForward, theirs: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer
) -> None:
    ours.expand.load_state_dict(theirs.linear1.state_dict())
    ours.contract.load_state_dict(theirs.linear2.state_dict())


def options(order: str, activation: str) -> BlockOptions:
    return BlockOptions(
        dim=DIM, ffn_dim=HIDDEN, activation=activation, norm_order=order, dropout=0.0
    )


def perturb(layer: nn.Module) -> None:
    """Norms start alike, which would hide an exchange."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("order", ["pre", "post"])
def test_encoder_layer(order: str, activation: str) -> None:
    theirs = nn.TransformerEncoderLayer(
        DIM, HEADS, HIDDEN, 0.0, activation, batch_first=True, norm_first=order == "pre"
    )
    perturb(theirs)
    ours = TransformerLayer(ATTENTION, None, options(order, activation), role="global")
    copy_attention(ours.self_attention.attention, theirs.self_attn)
    copy_feed_forward(ours.feed_forward, theirs)
    ours.self_attention.norm.load_state_dict(theirs.norm1.state_dict())
    ours.feed_forward.norm.load_state_dict(theirs.norm2.state_dict())
    x, real = torch.randn(2, KEYS, DIM), key_mask("right", 2, KEYS)
    out = ours(x, mask=Mask(key_mask=real), positions=POSITIONS[None])
    assert_same(out[real], theirs(x, src_key_padding_mask=~real)[real])


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("order", ["pre", "post"])
def test_decoder_layer(order: str, activation: str) -> None:
    theirs = nn.TransformerDecoderLayer(
        DIM, HEADS, HIDDEN, 0.0, activation, batch_first=True, norm_first=order == "pre"
    )
    perturb(theirs)
    ours = TransformerLayer(ATTENTION, ATTENTION, options(order, activation), role="causal")
    assert ours.cross_attention is not None
    copy_attention(ours.self_attention.attention, theirs.self_attn)
    copy_attention(ours.cross_attention.attention, theirs.multihead_attn)
    copy_feed_forward(ours.feed_forward, theirs)
    ours.self_attention.norm.load_state_dict(theirs.norm1.state_dict())
    ours.cross_attention.norm.load_state_dict(theirs.norm2.state_dict())
    ours.feed_forward.norm.load_state_dict(theirs.norm3.state_dict())
    x, memory, real = torch.randn(2, 5, DIM), torch.randn(2, KEYS, DIM), key_mask("right", 2, KEYS)
    out = ours(
        x, memory, mask=Mask(), context_mask=Mask(key_mask=real), positions=POSITIONS[None, :5]
    )
    future = POSITIONS[None, :5] > POSITIONS[:5, None]
    assert_same(out, theirs(x, memory, tgt_mask=future, memory_key_padding_mask=~real))
