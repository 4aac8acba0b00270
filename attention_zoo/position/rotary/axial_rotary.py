"""Rotary positions on a grid (Heo et al. 2024)."""

from typing import Any

import torch
from torch import Tensor

from attention_zoo.errors import check_positive
from attention_zoo.position.rotary.grid import GridRotary
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="axial_rotary",
    also_called=("rope_2d",),
    paper="Heo et al. 2024, arXiv 2403.13298, and the authors' code",
    equation="rotary of the column t mod w for half of the pairs, of the row ⌊t/w⌋ for the others",
    reference="transformers Sam2VideoRoPEAttention",
    acts=("heads",),
    relative=False,
    deviations="tokens of a sequence are laid out on a grid of w columns, row by row, from "
    "position 0; the pairs of columns come before those of rows, as in the authors' code",
)
class AxialRotaryEncoding(GridRotary):
    """Rotates the first half of the pairs by the column of a token, the second half by its row.

    The token at t is in column t mod w and row ⌊t/w⌋ of a grid of w columns. A half of n pairs has
    the frequencies base^(−i/n), i from 0 to n − 1. Of an odd number of pairs, columns get one more.

    Args:
        grid_width: w, in tokens, for sequences that are images, tables or boards.
    """

    def __init__(self, *, base: float = 100.0, grid_width: int = 16, **options: Any) -> None:
        super().__init__(base=base, **options)
        check_positive(grid_width=grid_width)
        self.grid_width = grid_width
        pairs = self.width // 2
        self.halves = (pairs - pairs // 2, pairs // 2)  # of columns and of rows

    def frequencies(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        steps = [torch.arange(n, device=x.device, dtype=wide) / max(n, 1) for n in self.halves]
        return self.base ** -torch.cat(steps)

    def coordinates(self, positions: Tensor) -> Tensor:
        rows = positions.div(self.grid_width, rounding_mode="floor")
        columns = positions - rows * self.grid_width
        return self.repeat_axes((columns, rows), self.halves)

    def naive_frequencies(self, length: int) -> list[float]:
        count = (self.head_dim // 2 + 1) // 2
        columns = [self.base ** (-i / count) for i in range(count)]
        count = self.head_dim // 2 - count
        return columns + [self.base ** (-i / count) for i in range(count)]

    def naive_coordinate(self, pair: int, positions: Tensor) -> Tensor:
        is_column = 2 * pair < self.head_dim / 2
        return positions % self.grid_width if is_column else positions // self.grid_width
