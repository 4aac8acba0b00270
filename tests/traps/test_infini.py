"""Traps of Infini-attention: what is in the memory, and when."""

import pytest
import torch
from torch import Tensor

from attention_zoo.attention.base import Attention
from attention_zoo.caches import StateCache
from attention_zoo.masks import Mask
from tests.conformance.numbers import assert_same
from tests.conformance.test_caches import decode
from tests.traps.dense import (
    DIM,
    HEADS,
    WIDTH,
    assert_packed_sequences_stand_alone,
    assert_whole,
    built,
    split,
    tokens,
)

SEGMENT = 3


def infini(**options: object) -> Attention:
    return built("infini", "causal", segment=SEGMENT, **options)


def set_balance(attention: Attention, number: float) -> None:
    with torch.no_grad():
        attention.balance.fill_(number)


def in_segments(attention: Attention, x: Tensor) -> Tensor:
    """The paper's recurrence, segment by segment: the memory is read before it is updated."""
    q, k, v = (split(getattr(attention, name)(x)) for name in ("query", "key", "value"))
    memory, norm = torch.zeros(len(x), HEADS, WIDTH, WIDTH), torch.zeros(len(x), HEADS, WIDTH)
    share, outputs = torch.sigmoid(attention.balance)[:, None, None], []
    for parts in zip(*(part.split(SEGMENT, dim=2) for part in (q, k, v)), strict=True):
        query, key, value = parts
        feature = torch.nn.functional.elu(query) + 1
        remembered = feature @ memory / (feature @ norm[..., None]).clamp(min=1e-300)
        local = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        outputs.append(share * remembered + (1 - share) * local)
        feature = torch.nn.functional.elu(key) + 1
        memory = memory + feature.transpose(-2, -1) @ value
        norm = norm + feature.sum(dim=2)
    return attention.output(torch.cat(outputs, dim=2).transpose(1, 2).flatten(-2))


@pytest.mark.parametrize("length", [1, 3, 4, 6, 17])
def test_it_is_the_recurrence_of_the_paper(length: int) -> None:
    attention = infini()
    x = tokens(length)
    assert_same(attention(x), in_segments(attention, x))


def test_the_memory_has_no_positions() -> None:
    """They rotate what is local alone."""
    attention = infini(position="rotary")
    x = tokens(9)
    positions = torch.randperm(9)[None]
    assert not torch.allclose(attention(x), attention(x, positions=positions))
    set_balance(attention, 50.0)  # The memory alone.
    assert_same(attention(x), attention(x, positions=positions))


def test_a_query_does_not_find_its_own_segment_in_the_memory() -> None:
    attention = infini()
    set_balance(attention, 50.0)
    weights = attention.attention_map(tokens(8))
    for i in range(8):
        earlier = i // SEGMENT * SEGMENT
        assert (weights[:, :, i, :earlier] > 0).all()
        assert (weights[:, :, i, earlier:] < 1e-12).all()


def test_the_cache_has_a_constant_size() -> None:
    attention = infini(kv_heads=2, position="rotary")
    for length in (1, SEGMENT, 20):
        cache = attention.new_cache()
        assert isinstance(cache, StateCache)
        decode(attention, cache, tokens(length), [1] * length)
        assert cache.state is not None
        numbers = sum(part[0].numel() for part in cache.state if part.is_floating_point())
        assert numbers == attention.decode_state(length) == attention.decode_state(10**6)


@pytest.mark.parametrize("segment", [1, 2, 7, 100])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_segments_of_every_length_keep_the_contract(segment: int, kv_heads: int) -> None:
    assert_whole(built("infini", "causal", segment=segment, kv_heads=kv_heads, position="rotary"))


def test_packed_sequences_have_memories_of_their_own() -> None:
    assert_packed_sequences_stand_alone(infini(position="rotary"))


def test_padding_anywhere_takes_no_place_in_a_segment() -> None:
    attention = infini(position="rotary")
    x = tokens(24)
    real = torch.rand(2, 24) < 0.6
    positions = (real.cumsum(dim=1) - 1).clamp(min=0)
    mask = Mask(key_mask=real)
    out = attention(x, mask=mask, positions=positions)
    for row in range(2):
        assert_same(out[row, real[row]], attention(x[row : row + 1, real[row]])[0])
    for chunks in ([24], [5, 1, 1, 17], [1] * 24):
        decoded = decode(
            attention, attention.new_cache(), x, chunks, mask=mask, positions=positions
        )
        assert_same(decoded[real], out[real])


def test_other_widths_than_dim_over_heads() -> None:
    assert DIM != HEADS * 6
    assert_whole(infini(head_dim=6, position="rotary"))
