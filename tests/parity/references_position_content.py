"""Encodings that read queries and keys, against transformers and x-transformers."""

import warnings
from unittest import mock

import torch
from transformers import DebertaV2Config, XLNetConfig
from transformers.models.deberta_v2 import modeling_deberta_v2
from transformers.models.xlnet.modeling_xlnet import XLNetModel, XLNetRelativeAttention

from attention_zoo import create_attention, create_position
from attention_zoo.attention.base import Attention
from attention_zoo.masks import Mask
from tests.parity.compared import Outcome, outcome, parity
from tests.parity.references_transformers import DIM, HEADS, LENGTH

with warnings.catch_warnings():
    # It scripts functions, which torch is about to give up.
    warnings.simplefilter("ignore", DeprecationWarning)
    from x_transformers.x_transformers import Attention as XTransformersAttention

MEMORY = 7  # tokens


def encoded(name: str, role: str = "causal", **options: object) -> Attention:
    """Multi-head attention with an encoding whose parameters are away from zero."""
    attention = create_attention("multi_head", dim=DIM, heads=HEADS, role=role)
    attention.attach_position(create_position(name, **attention.position_sizes, **options))
    with torch.no_grad():
        for parameter in attention.encoding.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return attention


@parity("transformer_xl", "transformers XLNetRelativeAttention")
def transformer_xl() -> tuple[Outcome, Outcome]:
    """With a memory of earlier tokens, which is a cache of ours.

    Theirs adds x, and norms; and its sines stand before its cosines.
    """
    ours = encoded("transformer_xl")
    config = XLNetConfig(d_model=DIM, n_head=HEADS, n_layer=1, d_inner=DIM, vocab_size=8)
    theirs = XLNetRelativeAttention(config).eval()
    order = [*range(0, DIM, 2), *range(1, DIM, 2)]
    own = ours.encoding
    with torch.no_grad():
        for part, linear in (("q", ours.query), ("k", ours.key), ("v", ours.value)):
            getattr(theirs, part).copy_(linear.weight.T.unflatten(1, (HEADS, -1)))
        theirs.o.copy_(ours.output.weight.unflatten(1, (HEADS, -1)))
        theirs.r.copy_(own.distance.weight.T[order].unflatten(1, (HEADS, -1)))
        theirs.r_w_bias.copy_(own.query_content_bias)
        theirs.r_r_bias.copy_(own.query_position_bias)
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    memory = torch.randn(2, MEMORY, DIM)
    keys = MEMORY + LENGTH
    relative = XLNetModel(config).relative_positional_encoding(LENGTH, keys, bsz=2)
    hidden = torch.ones(LENGTH, keys).triu(MEMORY + 1)[:, :, None, None]
    expected, _ = theirs(
        x.transpose(0, 1), None, hidden, None, relative, None, memory.transpose(0, 1)
    )
    cache = ours.new_cache()
    ours(memory, cache=cache)
    found = theirs.layer_norm(ours(x, cache=cache) + x)
    return (
        outcome(found, [x, own.query_content_bias, own.query_position_bias]),
        outcome(expected.transpose(0, 1), [x, theirs.r_w_bias, theirs.r_r_bias]),
    )


@parity("disentangled", "transformers DisentangledSelfAttention (deberta_v2)")
def disentangled() -> tuple[Outcome, Outcome]:
    """With distances beyond the clip, and padding.

    Their keys take the row of t − s. For that of s − t, which the paper says, `build_rpos`, of
    which they take the negative, is made to give the distance with the other sign.
    """
    clip = 6
    ours = encoded("disentangled", "global", clip=clip)
    config = DebertaV2Config(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        max_relative_positions=clip,
        position_buckets=-1,
    )
    theirs = modeling_deberta_v2.DisentangledSelfAttention(config).eval()
    own = ours.encoding
    parts = (
        (theirs.query_proj, ours.query),
        (theirs.key_proj, ours.key),
        (theirs.value_proj, ours.value),
        (theirs.pos_query_proj, own.query),
        (theirs.pos_key_proj, own.key),
    )
    with torch.no_grad():
        for other, part in parts:
            other.weight.copy_(part.weight)
            other.bias.zero_()
    table = own.table.detach().clone().requires_grad_()
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    real[1, 13:] = False
    distances = modeling_deberta_v2.build_relative_position(x, x)
    with mock.patch.object(modeling_deberta_v2, "build_rpos", lambda *_: -distances[:, None]):
        expected, _ = theirs(x, real[:, None, None], rel_embeddings=table)
    found = ours(x, mask=Mask(key_mask=real))
    return (
        outcome(found, [x, own.table, own.query.weight, own.key.weight]),
        outcome(
            ours.output(expected),
            [x, table, theirs.pos_query_proj.weight, theirs.pos_key_proj.weight],
        ),
    )


@parity("contextual", "x-transformers CoPE")
def contextual() -> tuple[Outcome, Outcome]:
    """With more tokens than positions."""
    last = 5
    ours = encoded("contextual", max_position=last)
    theirs = XTransformersAttention(
        DIM,
        heads=HEADS,
        dim_head=DIM // HEADS,
        causal=True,
        use_cope=True,
        cope_max_pos=last + 1,
        flash=False,
    )
    parts = (
        (theirs.to_q, ours.query),
        (theirs.to_k, ours.key),
        (theirs.to_v, ours.value),
        (theirs.to_out, ours.output),
    )
    with torch.no_grad():
        for other, part in parts:
            other.weight.copy_(part.weight)
        theirs.attend.cope.pos_emb.copy_(ours.encoding.table)
    x = 2.0 * torch.randn(2, LENGTH, DIM)
    x.requires_grad_()
    return (
        outcome(ours(x), [x, ours.encoding.table, ours.key.weight]),
        outcome(theirs(x), [x, theirs.attend.cope.pos_emb, theirs.to_k.weight]),
    )
