"""What stands at padded positions does not matter."""

from itertools import product
from typing import Any

import pytest
import torch

from attention_zoo import UserError
from attention_zoo.attention.base import Attention
from attention_zoo.masks import Mask
from tests.conformance.cases import (
    Case,
    over,
    over_values,
    plain_cases,
    positioned_cases,
    small_options,
)
from tests.conformance.definition import key_mask
from tests.conformance.numbers import assert_same, values_and_gradients

WINDOW = 4


@pytest.mark.parametrize(
    ("side", "length"), [("left", 7), ("left", 65), ("right", 65), ("interior", 65)]
)
@over(case for case in plain_cases() if case.honours("key_mask"))
def test_content_of_padding_is_irrelevant(case: Case, side: str, length: int) -> None:
    attention = case.attention()
    inputs = case.inputs(7 if case.role == "cross" else length, length)
    real = key_mask(side, 2, length)
    source = inputs[-1].requires_grad_()

    def at_real_queries(changed: torch.Tensor) -> torch.Tensor:
        out = attention(*inputs[:-1], changed, mask=Mask(key_mask=real))
        return out if case.role == "cross" else out[real]

    out = at_real_queries(source)
    other = torch.where(real[..., None], source, 100.0 * torch.randn_like(source))
    assert_same(at_real_queries(other), out)
    (gradient,) = torch.autograd.grad(out.sin().sum(), source)
    assert (gradient[~real] == 0).all()
    assert gradient[real].ne(0).any()


def real_tokens(layout: str, length: int) -> torch.Tensor:
    """[2 n] bool: a whole row, and one that is padded here and there."""
    holes = {
        "left": [0] * (length // 3) + [1] * length,
        "interior": [1] * (length // 3) + [0] * (length // 4) + [1] * length,
        "alternating": [1, 0, 1, 1, 0] * length,
        "everywhere": [0, 0, 1, 0, 1, 1, 1] * (length // 14) + [1] * (length // 3) + [0] * length,
    }
    return torch.tensor([[1] * length, holes[layout][:length]]).bool()


def with_window(case: Case) -> dict[str, int]:
    """The option `window`, where it is off by default and the role has one."""
    is_off = small_options(case.name).get("window", 0) is None
    return {"window": WINDOW} if is_off and case.role != "cross" else {}


def count_positions(real: torch.Tensor) -> torch.Tensor:
    """[b n]: positions that count the real tokens."""
    return (real.cumsum(dim=1) - 1).clamp(min=0)


def hold_padded_row(
    case: Case, attention: Attention, layout: str, length: int, **fields: Any
) -> None:
    """A padded row has the values and gradients of its real tokens alone."""
    real = real_tokens(layout, length)
    own, options = real[1], {} if case.role == "cross" else {"positions": count_positions(real)}
    mask = Mask(key_mask=real, **fields)

    def together(*inputs: torch.Tensor) -> torch.Tensor:
        out = attention(*inputs, mask=mask, **options)
        return out[1:] if case.role == "cross" else out[1:, own]

    def alone(*inputs: torch.Tensor) -> torch.Tensor:
        *queries, source = (part[1:] for part in inputs)
        return attention(*queries, source[:, own], mask=Mask(**fields))

    inputs = case.inputs(7 if case.role == "cross" else length, length)
    assert_same(
        values_and_gradients(together, attention, *inputs),
        values_and_gradients(alone, attention, *inputs),
    )
    whole = attention(*(part[:1] for part in inputs), mask=Mask(**fields))
    assert_same(attention(*inputs, mask=mask, **options)[:1], whole)


@over_values(
    "layout,length",
    product(["alternating", "left", "interior", "everywhere"], [70, 23]),
    (case for case in plain_cases() if case.honours("key_mask")),
    every_entry=True,
)
def test_a_padded_row_is_that_of_its_real_tokens(case: Case, layout: str, length: int) -> None:
    hold_padded_row(case, case.attention().eval(), layout, length)


@over_values(
    "layout,length",
    [("alternating", 70)],
    (case for case in positioned_cases() if with_window(case)),
)
def test_padding_takes_no_place_in_a_window(case: Case, layout: str, length: int) -> None:
    hold_padded_row(case, case.attention(window=WINDOW).eval(), layout, length)


@over_values(
    "layout,length",
    [("everywhere", 23)],
    (case for case in positioned_cases() if case.honours("window")),
)
def test_padding_takes_no_place_in_the_window_of_a_mask(
    case: Case, layout: str, length: int
) -> None:
    hold_padded_row(case, case.attention().eval(), layout, length, window=3)


@over_values(
    "layout",
    ["everywhere"],
    (case for case in positioned_cases() if case.honours("key_mask") and case.role != "cross"),
)
def test_the_map_of_a_padded_row_is_that_of_its_real_tokens(case: Case, layout: str) -> None:
    attention = case.attention(**with_window(case)).eval()
    (x,), real = case.inputs(23), real_tokens(layout, 23)
    mask, positions = Mask(key_mask=real), count_positions(real)
    weights = attention.attention_map(x, mask=mask, positions=positions)
    own = real[1]
    assert_same(weights[1:, :, own][..., own], attention.attention_map(x[1:, own]))
    assert (weights[1:, :, :, ~own] == 0).all()
    values = attention.values(x, mask=mask, positions=positions)
    attended = attention.apply_weights(weights, values)
    bias = attention.position.value_bias(weights, positions, positions)
    attended = attended if bias is None else attended + bias
    out = attention(x, mask=mask, positions=positions)
    assert_same(attention.project_output(attended, x)[real], out[real])


def hold_padded_decoding(
    case: Case, attention: Attention, chunks: list[int], index: list[int], **fields: Any
) -> None:
    """A padded row that comes in chunks is that of its real tokens; others take over halfway."""
    length, rows = sum(chunks), torch.tensor(index)
    (x,), real = case.inputs(length), real_tokens("alternating", length)
    outputs, cache = [], attention.new_cache()
    for number, chunk in enumerate(chunks):
        if number == 1:
            cache.reorder(rows)
            x, real = x[rows], real[rows]
            outputs[0] = outputs[0][rows]
        stop = cache.length + chunk
        own = slice(cache.length, stop)
        mask = Mask(key_mask=real[:, :stop], **fields)
        positions = count_positions(real)[:, own]
        outputs.append(attention(x[:, own], mask=mask, positions=positions, cache=cache))
    decoded = torch.cat(outputs, dim=1)
    for row, own in enumerate(real):
        alone = attention(x[row : row + 1, own], mask=Mask(**fields))
        assert_same(decoded[row : row + 1, own], alone)


CHUNKS = [[9, 1, 1, 1, 11], [1] * 23, [4, 19], [2, 3, 18]]


@over_values(
    "chunks",
    CHUNKS,
    (case for case in plain_cases() if case.decodes and case.role == "causal"),
    every_entry=True,
)
def test_a_state_leaves_padding_out(case: Case, chunks: list[int]) -> None:
    hold_padded_decoding(case, case.attention().eval(), chunks, [1, 0])


@over_values(
    "chunks",
    CHUNKS[:1],
    (case for case in positioned_cases() if case.decodes and with_window(case)),
)
def test_a_windowed_cache_leaves_padding_out(case: Case, chunks: list[int]) -> None:
    hold_padded_decoding(case, case.attention(window=WINDOW).eval(), chunks, [1, 0, 1])


@over_values(
    "chunks",
    CHUNKS[1:2],
    (case for case in positioned_cases() if case.decodes and case.honours("window")),
)
def test_a_whole_cache_leaves_padding_out_of_a_window(case: Case, chunks: list[int]) -> None:
    hold_padded_decoding(case, case.attention().eval(), chunks, [1, 0, 1], window=3)


@over((case for case in plain_cases() if case.packs and case.role != "cross"), every_entry=True)
def test_padding_inside_packed_sequences(case: Case) -> None:
    attention = case.attention(**with_window(case)).eval()
    length = 23
    (x,) = case.inputs(length)
    real = real_tokens("alternating", length)
    segment_ids = (torch.arange(length) >= 11).long().expand(2, -1)
    counts = real.cumsum(dim=1)
    positions = (counts - 1 - counts[:, 10:11] * segment_ids).clamp(min=0)
    mask = Mask(key_mask=real, segment_ids=segment_ids)
    together = attention(x, mask=mask, positions=positions)
    for segment in (0, 1):
        own = real[1] & (segment_ids[1] == segment)
        assert_same(together[1:, own], attention(x[1:, own]))


@over_values(
    "chunks",
    CHUNKS,
    (case for case in plain_cases() if case.decodes and case.packs and case.role != "cross"),
)
def test_a_cache_leaves_padding_out_of_packed_sequences(case: Case, chunks: list[int]) -> None:
    attention = case.attention(**with_window(case)).eval()
    (x,), real = case.inputs(23), real_tokens("alternating", 23)
    segment_ids = (torch.arange(23) >= 11).long().expand(2, -1)
    cache, outputs = attention.new_cache(), []
    for chunk in chunks:
        stop = cache.length + chunk
        mask = Mask(key_mask=real[:, :stop], segment_ids=segment_ids[:, :stop])
        outputs.append(attention(x[:, cache.length : stop], mask=mask, cache=cache))
    mask = Mask(key_mask=real, segment_ids=segment_ids)
    assert_same(torch.cat(outputs, dim=1)[real], attention(x, mask=mask)[real])


@pytest.mark.parametrize("name", ["sliding_window", "multi_token", "streaming"])
def test_cached_padding_stays_as_it_was(name: str) -> None:
    """A window of real tokens was chosen by it; what was dropped cannot come back."""
    attention = Case(name, "causal").attention(**with_window(Case(name, "causal")))
    (x,) = Case(name, "causal").inputs(9)
    real = torch.arange(9) != torch.tensor([[3], [4]])
    for earlier, later in ((real[:, :8], None), (None, real), (real[:, :8], real.flip(0))):
        cache = attention.new_cache()
        attention(x[:, :8], mask=Mask(key_mask=earlier), cache=cache)
        with pytest.raises(UserError, match="key_mask must be that of the earlier calls"):
            attention(x[:, 8:], mask=Mask(key_mask=later), cache=cache)
