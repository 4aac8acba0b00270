"""Traps of rotary positions with other frequencies, and of those on grids."""

from typing import Any

import pytest
import torch

from tests.conformance.numbers import assert_same
from tests.traps.test_position_rotary import HEADS, WIDTH, encoding

# Of p-RoPE.


def test_the_fastest_pairs_are_rotated_with_their_own_frequencies() -> None:
    """Not the slowest, and not the frequencies of a smaller head, as partial rotary has them."""
    x = torch.zeros(1)
    ours = encoding("p_rope", head_dim=64, fraction=0.25).frequencies(x)
    rotary = encoding("rotary", head_dim=64).frequencies(x)
    assert torch.equal(ours[:8], rotary[:8])
    assert not ours[8:].any()


@pytest.mark.parametrize(
    ("layout", "kept"), [("half_split", [2, 3, 6, 7]), ("interleaved", [4, 5, 6, 7])]
)
def test_both_channels_of_a_slow_pair_stay(layout: str, kept: list[int]) -> None:
    """Half-split: of a quarter of the pairs, the channels lie in both halves of the head."""
    q, positions = torch.randn(1, HEADS, 9, WIDTH), torch.arange(9)[None]
    rotated, _ = encoding("p_rope", fraction=0.5, layout=layout).rotate(q, q, positions)
    same = [i for i in range(WIDTH) if torch.equal(rotated[..., i], q[..., i])]
    assert same == kept


@pytest.mark.parametrize(
    ("fraction", "head_dim", "pairs"), [(0.75, 2, 1), (0.1, 8, 1), (0.5, 6, 1), (0.29, 200, 29)]
)
def test_the_number_of_fast_pairs_is_rounded_down(
    fraction: float, head_dim: int, pairs: int
) -> None:
    """To one at least, of narrow heads; 0.29·200 is 57.99… in floating point."""
    ours = encoding("p_rope", fraction=fraction, head_dim=head_dim)
    assert ours.frequencies(torch.zeros(1)).count_nonzero() == pairs


# Of grids.


@pytest.mark.parametrize(
    ("name", "options"),
    [("axial_rotary", {}), ("multi_axis_rotary", {"grid_height": 7, "sections": [0, 2, 2]})],
)
def test_scores_depend_on_the_distances_along_the_axes(name: str, options: Any) -> None:
    """A neighbour below is as near as a neighbour at the side, however wide the grid is."""
    grid = encoding(name, base=100.0, grid_width=5, **options)
    q, k = (torch.randn(1, HEADS, 1, WIDTH).expand(-1, -1, 35, -1) for _ in range(2))
    scores = torch.matmul(
        *(
            x if i == 0 else x.transpose(-2, -1)
            for i, x in enumerate(grid.rotate(q, k, torch.arange(35)[None]))
        )
    )
    places = {}
    for here in range(35):
        for there in range(35):
            distance = (here // 5 - there // 5, here % 5 - there % 5)
            places.setdefault(distance, []).append(scores[0, :, here, there])
    for same in places.values():
        assert_same(torch.stack(same), same[0].expand(len(same), -1))
    # The end of a row is not beside the start of the next.
    assert not torch.allclose(scores[0, :, 5, 4], scores[0, :, 4, 3])


def test_equal_axes_are_rotary() -> None:
    """In a row as long as the sequence; of axial positions, a quarter of the head each."""
    q, positions = torch.randn(1, HEADS, 9, WIDTH), torch.arange(9)[None]
    grid = encoding("multi_axis_rotary", grid_width=9, sections=[0, 0, 4])
    assert_same(grid.rotate(q, q, positions), encoding("rotary").rotate(q, q, positions))
    axial, _ = encoding("axial_rotary", grid_width=9, layout="interleaved").rotate(q, q, positions)
    half = encoding("rotary", head_dim=WIDTH // 2, base=100.0, layout="interleaved")
    first, _ = half.rotate(q[..., : WIDTH // 2], q[..., : WIDTH // 2], positions)
    assert_same(axial[..., : WIDTH // 2], first)
    assert torch.equal(axial[..., WIDTH // 2 :], q[..., WIDTH // 2 :])


# Of Fourier position embedding.


@pytest.mark.parametrize(
    ("length", "pairs"),
    [
        (2, 1),
        (6, 1),
        (7, 1),
        (62, 1),
        (63, 2),
        (628, 2),
        (629, 3),
        (6283, 3),
        (6284, 4),
        (10**6, 4),
    ],
)
def test_pairs_that_turn_once_in_training_are_kept(length: int, pairs: int) -> None:
    """Of frequencies 1, 0.1, 0.01, 0.001; the fastest is kept however short training was."""
    assert encoding("fope", base=10_000.0, original_length=length).pairs == pairs


def test_slow_pairs_keep_their_length() -> None:
    """Sine 0 and cosine 1; both 1, as padding them alike gives, would double their scores."""
    fope = encoding("fope", original_length=63, base=10_000.0)
    x, positions = torch.randn(1, HEADS, 9, WIDTH), torch.arange(9)[None]
    rotated, _ = fope.rotate(x, x, positions)
    assert torch.equal(rotated[..., 2:4], x[..., 2:4])
    assert torch.equal(rotated[..., 6:], x[..., 6:])


def test_a_series_without_a_draw_is_rotary() -> None:
    x, positions = torch.randn(1, HEADS, 9, WIDTH), torch.arange(9)[None]
    fope = encoding("fope", gain=0.0, original_length=10**6)
    assert_same(fope.rotate(x, x, positions), encoding("rotary").rotate(x, x, positions))


def test_coefficients_are_not_trained_but_saved() -> None:
    first, second = encoding("fope"), encoding("fope")
    assert not list(first.parameters())
    assert not torch.equal(first.cos_coefficients, first.sin_coefficients)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.cos_coefficients, second.cos_coefficients)
