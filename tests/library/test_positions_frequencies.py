"""Rotary positions with other frequencies, and on grids, against their formulas in plain loops."""

import math

import pytest
import torch
from torch import Tensor

from tests.conformance.numbers import assert_same
from tests.library.test_positions import POSITIONS, encoding
from tests.library.test_positions_rotary import (
    BASE,
    PAIRS,
    WIDTH,
    assert_turned,
    heads,
    plain,
    turned,
)


@pytest.mark.parametrize("layout", list(PAIRS))
def test_fope_is_a_series_of_the_fast_frequencies(layout: str) -> None:
    """Σ_j A_ji cos(t·ω_j) and Σ_j B_ji sin(t·ω_j); of 40 tokens, two pairs have ω ≥ 0.157."""
    fope = encoding("fope", head_dim=WIDTH, base=BASE, layout=layout, original_length=40, gain=0.5)
    frequencies = [w for w in map(plain, range(4)) if w >= 2 * math.pi / 40]
    assert len(frequencies) == 2
    a, b = fope.cos_coefficients, fope.sin_coefficients
    assert a.shape == b.shape == (len(frequencies), len(frequencies))

    def each(x: Tensor, place: int) -> Tensor:
        out = x.clone()
        for i, (first, second) in enumerate(PAIRS[layout][: len(frequencies)]):
            cos = sum(a[j, i] * math.cos(place * w) for j, w in enumerate(frequencies))
            sin = sum(b[j, i] * math.sin(place * w) for j, w in enumerate(frequencies))
            out[first] = x[first] * cos - x[second] * sin
            out[second] = x[second] * cos + x[first] * sin
        return out

    q, k = heads()
    for x, ours in zip((q, k), fope.rotate(q, k, POSITIONS), strict=True):
        assert_turned(ours, x, each)


@pytest.mark.parametrize("layout", list(PAIRS))
def test_multiplicative_grape_learns_its_frequencies(layout: str) -> None:
    grape = encoding("grape_multiplicative", head_dim=WIDTH, base=BASE, layout=layout)
    q, k = heads()
    rotary = encoding("rotary", head_dim=WIDTH, base=BASE, layout=layout)
    assert_same(grape.rotate(q, k, POSITIONS), rotary.rotate(q, k, POSITIONS))
    ratios = [0.5, 1.0, 1.5, 3.0]
    with torch.no_grad():
        grape.log_ratio.copy_(16 * torch.tensor(ratios).log())
    frequencies = [plain(i) * ratio for i, ratio in enumerate(ratios)]
    for x, ours in zip((q, k), grape.rotate(q, k, POSITIONS), strict=True):
        assert_turned(ours, x, lambda x, t: turned(x, t, frequencies, PAIRS[layout]))


@pytest.mark.parametrize("layout", list(PAIRS))
def test_axial_rotary_turns_by_column_and_by_row(layout: str) -> None:
    """Heo et al. 2024: θ_i = b^(−i/(d/4)), for both axes."""
    axial = encoding("axial_rotary", head_dim=WIDTH, base=BASE, layout=layout, grid_width=3)
    frequencies = [BASE ** (-i / (WIDTH // 4)) for i in range(WIDTH // 4)]

    def each(x: Tensor, place: int) -> Tensor:
        row, column = divmod(place, 3)
        out = turned(x, column, [*frequencies, 0.0, 0.0], PAIRS[layout])
        return turned(out, row, [0.0, 0.0, *frequencies], PAIRS[layout])

    q, k = heads()
    for x, ours in zip((q, k), axial.rotate(q, k, POSITIONS), strict=True):
        assert_turned(ours, x, each)


def test_of_an_odd_number_of_pairs_columns_have_one_more() -> None:
    axial = encoding("axial_rotary", head_dim=6, base=BASE, grid_width=3)
    frequencies = axial.frequencies(torch.zeros(1)).tolist()
    assert frequencies == pytest.approx([1.0, BASE**-0.5, 1.0])
    assert axial.coordinates(torch.tensor([[7]])).tolist() == [[[1, 1, 2]]]


@pytest.mark.parametrize("sections", [None, [1, 2, 1], [0, 1, 3], [4, 0, 0]])
def test_multi_axis_rotary_turns_each_section_by_an_axis(sections: list[int] | None) -> None:
    """Qwen2-VL: the frequencies of all pairs, and an axis for each section; a quarter is time's."""
    options = {"base": BASE, "grid_height": 2, "grid_width": 3, "sections": sections}
    grid = encoding("multi_axis_rotary", head_dim=WIDTH, **options)
    time, row, _ = sections or [1, 1, 2]

    def each(x: Tensor, place: int) -> Tensor:
        axes = (place // 6, place // 3 % 2, place % 3)
        for i, pair in enumerate(PAIRS["half_split"]):
            axis = axes[0 if i < time else 1 if i < time + row else 2]
            x = turned(x, axis, [plain(i)], [pair])
        return x

    q, k = heads()
    for x, ours in zip((q, k), grid.rotate(q, k, POSITIONS), strict=True):
        assert_turned(ours, x, each)
