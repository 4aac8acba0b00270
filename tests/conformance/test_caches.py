"""Decoding with a cache is one pass over everything, however the tokens come."""

import pytest
import torch
from torch import Tensor

from attention_zoo import Unsupported
from attention_zoo.attention.base import Attention
from attention_zoo.caches import Cache
from attention_zoo.masks import Mask
from tests.conformance.cases import (
    DIM,
    Case,
    backends,
    over,
    over_values,
    plain_cases,
    positioned_cases,
)
from tests.conformance.definition import key_mask, packed
from tests.conformance.numbers import assert_same

CHUNKS = [[5, 1, 1, 4], [1] * 11, [2, 9], [33, 33, 1, 4]]
cross_cases = over(case for case in plain_cases() if case.decodes and case.role == "cross")


def up_to(mask: Mask, length: int) -> Mask:
    """The mask over the first tokens only: all that is known while decoding."""
    return Mask(
        window=mask.window,
        key_mask=None if mask.key_mask is None else mask.key_mask[:, :length],
        segment_ids=None if mask.segment_ids is None else mask.segment_ids[:, :length],
    )


@torch.no_grad()  # as in decoding, where a cache writes to its tokens
def decode(
    attention: Attention,
    cache: Cache,
    x: Tensor,
    chunks: list[int],
    *,
    mask: Mask = Mask(),
    positions: Tensor | None = None,
) -> Tensor:
    """The outputs of self-attention for x, which comes in chunks."""
    outputs = []
    for chunk in chunks:
        start = cache.length
        own = slice(start, start + chunk)
        outputs.append(
            attention(
                x[:, own],
                mask=up_to(mask, start + chunk),
                positions=None if positions is None else positions[:, own],
                cache=cache,
            )
        )
        assert cache.length == start + chunk
    return torch.cat(outputs, dim=1)


@over_values(
    "chunks",
    CHUNKS,
    (case for case in positioned_cases() if case.decodes and case.role != "cross"),
    every_entry=True,
)
def test_chunks_are_one_pass(case: Case, chunks: list[int]) -> None:
    attention = case.attention()
    (x,) = case.inputs(sum(chunks))
    assert_same(decode(attention, attention.new_cache(), x, chunks), attention(x))


@pytest.mark.parametrize("name", ["window", "key_mask", "segment_ids"])
@over_values(
    "chunks", CHUNKS, (case for case in plain_cases() if case.decodes and case.role != "cross")
)
def test_chunks_are_one_pass_under_a_mask(case: Case, chunks: list[int], name: str) -> None:
    """Padding stands at the left, as in a batch of prompts, and positions count the real tokens."""
    length = sum(chunks)
    real = key_mask("left", 2, length)
    masks = {
        "window": Mask(window=3),
        "key_mask": Mask(key_mask=real),
        "segment_ids": Mask(segment_ids=packed([length - 6, 1, 5], 2)),
    }
    attention = case.attention()
    (x,) = case.inputs(length)
    positions = (real.cumsum(dim=1) - 1).clamp(min=0)

    def outputs() -> Tensor:
        cache = attention.new_cache()
        return decode(attention, cache, x, chunks, mask=masks[name], positions=positions)

    if case.honours(name):
        assert_same(outputs(), attention(x, mask=masks[name], positions=positions))
    else:
        with pytest.raises(Unsupported, match=name):
            outputs()


@over(case for case in plain_cases() if case.decodes and len(backends(case.name)) > 1)
def test_every_backend_decodes(case: Case) -> None:
    x, *context = case.inputs(11)
    real = key_mask("left", 2, 11) if case.honours("key_mask") else None
    mask = Mask(window=3 if case.honours("window") else None, key_mask=real)
    for backend in backends(case.name):
        attention = case.attention(**backend)
        cache = attention.new_cache()
        if context:
            parts = [attention(part, *context, mask=mask, cache=cache) for part in x.split(4, 1)]
            out = torch.cat(parts, dim=1)
        else:
            out = decode(attention, cache, x, [5, 1, 1, 4], mask=mask)
        assert_same(out, attention(x, *context, mask=mask))


@over_values(
    "index",
    [[0, 0, 1, 1], [1, 0], [1, 1]],
    (case for case in positioned_cases() if case.decodes and case.role != "cross"),
)
def test_reordering_continues_other_rows(case: Case, index: list[int]) -> None:
    """As beam search does: rows are exchanged, lost and repeated."""
    attention = case.attention()
    rows = torch.tensor(index)
    (before,) = case.inputs(6)
    (after,) = case.inputs(5, batch=len(index))
    cache = attention.new_cache()
    decode(attention, cache, before, [4, 1, 1])
    cache.reorder(rows)
    whole = torch.cat([before[rows], after], dim=1)
    assert_same(
        decode(attention, cache, after_cache(after, cache), [1, 3, 1]), attention(whole)[:, 6:]
    )


def after_cache(x: Tensor, cache: Cache) -> Tensor:
    """x behind as many columns as the cache holds, which `decode` skips."""
    return torch.cat([x.new_full((len(x), cache.length, DIM), float("nan")), x], dim=1)


@cross_cases
def test_context_is_read_once(case: Case) -> None:
    attention = case.attention()
    x, context = case.inputs(5, 9)
    mask = Mask(key_mask=key_mask("right", 2, 9)) if case.honours("key_mask") else Mask()
    expected = attention(x, context, mask=mask)
    cache = attention.new_cache()
    first = attention(x[:, :2], context, mask=mask, cache=cache)
    later = torch.full_like(context, float("nan"))
    rest = [attention(x[:, i : i + 1], later, mask=mask, cache=cache) for i in range(2, 5)]
    assert_same(torch.cat([first, *rest], dim=1), expected)
    assert cache.length == 9


@cross_cases
def test_queries_of_cross_attention_do_not_see_one_another(case: Case) -> None:
    """So the beams of a sentence, which have one context, are queries of one row."""
    attention = case.attention()
    x, context = case.inputs(4, 9)
    mask = Mask(key_mask=key_mask("right", 2, 9)) if case.honours("key_mask") else Mask()
    single = [attention(x[:, i : i + 1], context, mask=mask) for i in range(4)]
    assert_same(attention(x, context, mask=mask), torch.cat(single, dim=1))


@pytest.mark.parametrize("index", [[1, 0], [0, 0, 1, 1]], ids=str)
@cross_cases
def test_reordering_the_context(case: Case, index: list[int]) -> None:
    attention = case.attention()
    rows = torch.tensor(index)
    x, context = case.inputs(1, 9)
    mask = key_mask("right", 2, 9) if case.honours("key_mask") else None
    cache = attention.new_cache()
    attention(x, context, mask=Mask(key_mask=mask), cache=cache)
    cache.reorder(rows)
    mask = None if mask is None else mask[rows]
    (y, _) = case.inputs(1, 9, batch=len(index))
    out = attention(y, context[rows], mask=Mask(key_mask=mask), cache=cache)
    assert_same(out, attention(y, context[rows], mask=Mask(key_mask=mask)))


def test_reordering_an_empty_cache_is_harmless() -> None:
    for case in plain_cases():
        if case.decodes:
            case.attention().new_cache().reorder(torch.tensor([1, 0]))


@over(case for case in plain_cases() if case.decodes)
def test_the_cache_is_as_large_as_its_attention_says(case: Case) -> None:
    attention = case.attention()
    cache = attention.new_cache()
    inputs = case.inputs(1 if case.role == "cross" else 7, 7)
    attention(*inputs, cache=cache)
    attention(*(part[:, :1] for part in inputs), cache=cache)
    tokens = 7 if case.role == "cross" else 8
    numbers = sum(part[0].numel() for part in numbers_in(cache))
    assert numbers == attention.decode_state(tokens)


def numbers_in(kept: object) -> list[Tensor]:
    """The tensors of real numbers in a cache; positions are whole."""
    if isinstance(kept, Tensor):
        return [kept] if kept.is_floating_point() else []
    kept = getattr(kept, "__dict__", kept)  # of caches, also inside others
    if isinstance(kept, dict):
        kept = list(kept.values())
    return [x for part in kept for x in numbers_in(part)] if isinstance(kept, list | tuple) else []


@over(case for case in plain_cases() if not case.decodes)
def test_no_cache_is_refused(case: Case) -> None:
    with pytest.raises(Unsupported, match=r"cache|cached"):
        case.attention().new_cache()
