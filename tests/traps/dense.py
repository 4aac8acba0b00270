"""What the traps of dense mechanisms share."""

from typing import Any

import torch
from torch import Tensor

from attention_zoo import create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.masks import Mask
from tests.conformance.cases import moved
from tests.conformance.definition import packed, visible
from tests.conformance.numbers import assert_same, values_and_gradients
from tests.conformance.test_caches import decode

DIM, HEADS, WIDTH, LENGTH = 16, 4, 4, 7
ROLES = ("causal", "global", "cross")


def built(name: str, role: str = "global", **options: Any) -> Attention:
    """With parameters that have moved from their start, which may be a neutral one."""
    attention = create_attention(name, dim=DIM, heads=HEADS, role=role, **options)
    return moved(attention, scale=0.5)


def tokens(length: int = LENGTH) -> Tensor:
    return torch.randn(2, length, DIM)


def split(x: Tensor) -> Tensor:
    """[b t hc] -> [b h t c]."""
    return x.unflatten(-1, (-1, WIDTH)).transpose(1, 2)


def repeated(x: Tensor) -> Tensor:
    """[b g t c] -> [b h t c]."""
    return x.repeat_interleave(HEADS // x.shape[1], dim=1)


def expose_heads(attention: Attention) -> None:
    """Let the output be the heads, joined."""
    with torch.no_grad():
        attention.output.weight.copy_(torch.eye(DIM))


def assert_whole(attention: Attention) -> None:
    """With options that are not the yaml's: the naive form, and decoding in chunks."""
    x = tokens()
    sees = visible(attention, Mask(), 2, LENGTH, LENGTH)
    assert_same(
        values_and_gradients(attention, attention, x),
        values_and_gradients(
            lambda x: attention.naive(x, x, sees, torch.arange(x.shape[1])[None]), attention, x
        ),
    )
    if attention.role == "causal":
        assert_same(decode(attention, attention.new_cache(), x, [4, 1, 2]), attention(x))


def rms(x: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean(dim=-1, keepdim=True) + 1e-6)


def assert_packed_sequences_stand_alone(attention: Attention) -> None:
    """In one pass and in chunks that hold the end of one sequence and the start of others."""
    x, ids = tokens(20), packed([11, 1, 8], 2)
    out = attention(x, mask=Mask(segment_ids=ids))
    for row, ends in enumerate([(11, 12), (1, 9)]):
        alone = [attention(part) for part in x[row : row + 1].tensor_split(ends, dim=1)]
        assert_same(out[row : row + 1], torch.cat(alone, dim=1))
    for chunks in ([10, 10], [11, 2, 7], [4] * 5, [1] * 20):
        decoded = decode(attention, attention.new_cache(), x, chunks, mask=Mask(segment_ids=ids))
        assert_same(decoded, out)
