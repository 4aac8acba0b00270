"""The option `window`: a query sees the keys of the window, and the cache keeps no others."""

from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter

import pytest
import torch

from attention_zoo import Unsupported
from attention_zoo.masks import Mask
from tests.conformance.cases import (
    Case,
    over,
    over_values,
    plain_cases,
    positioned_cases,
    small_options,
)
from tests.conformance.definition import key_mask, packed, visible
from tests.conformance.numbers import assert_same
from tests.conformance.test_caches import decode, numbers_in

WINDOW = 4


def has_window(case: Case) -> bool:
    """Whether the window is an option that is off by default."""
    return small_options(case.name).get("window", 0) is None


def windowed(cases: Iterator[Case], *, decodes: bool = False) -> Iterator[Case]:
    """Yield those of self-attention with that option."""
    for case in cases:
        if has_window(case) and case.role != "cross" and (case.decodes or not decodes):
            yield case


@over(windowed(positioned_cases()), kind=attrgetter("family_kind"))
def test_the_window_is_that_of_a_mask(case: Case) -> None:
    """The mask may be narrower too; more than 64 queries are computed by blocks."""
    attention = case.attention(window=WINDOW)
    (x,) = case.inputs(70)
    mask = Mask(key_mask=key_mask("left", 2, 70), segment_ids=packed([66, 4], 2))
    wide = case.attention()
    wide.load_state_dict(attention.state_dict())
    assert_same(attention(x, mask=mask), wide(x, mask=replace(mask, window=WINDOW)))
    narrower = replace(mask, window=2)
    assert_same(attention(x, mask=narrower), wide(x, mask=narrower))
    maps = attention.attention_map(x, mask=mask)
    assert_same(maps, wide.attention_map(x, mask=replace(mask, window=WINDOW)))


@over(windowed(plain_cases()))
def test_forward_is_the_naive_form(case: Case) -> None:
    attention = case.attention(window=WINDOW)
    (x,) = case.inputs(7)
    positions = torch.arange(7)[None]
    seen = visible(attention, Mask(), 2, 7, 7)
    assert_same(attention(x), attention.naive(x, x, seen, positions))


@over_values("chunks", [[5, 1, 1, 4], [1] * 11, [2, 9]], windowed(positioned_cases(), decodes=True))
def test_chunks_are_one_pass(case: Case, chunks: list[int]) -> None:
    attention = case.attention(window=WINDOW)
    (x,) = case.inputs(11)
    positions = torch.arange(11)[None].expand(2, -1)
    mask = Mask(key_mask=key_mask("left", 2, 11)) if case.honours("key_mask") else Mask()
    whole = attention(x, mask=mask, positions=positions)
    decoded = decode(attention, attention.new_cache(), x, chunks, mask=mask, positions=positions)
    assert_same(decoded, whole)


@over(windowed(plain_cases(), decodes=True))
def test_the_cache_stops_growing(case: Case) -> None:
    attention = case.attention(window=WINDOW)
    cache = attention.new_cache()
    (x,) = case.inputs(40)
    attention(x, cache=cache)
    for token in x[:, :3].unbind(1):
        attention(token[:, None], cache=cache)
    numbers = sum(part[0].numel() for part in numbers_in(cache))
    assert numbers == attention.decode_state(43) == attention.decode_state(1000)


def test_cross_attention_has_no_window() -> None:
    with pytest.raises(Unsupported, match="cross-attention has no window"):
        Case("multi_head", "cross").attention(window=WINDOW)
