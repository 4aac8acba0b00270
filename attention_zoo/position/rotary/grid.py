"""Rotary positions of tokens on a grid: the base of encodings with several axes."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from attention_zoo.position.rotary.rotary import RotaryEncoding


class GridRotary(RotaryEncoding):
    """Rotary positions whose pairs turn by one coordinate each of a token on a grid.

    Tokens fill the grid row by row. Their products depend on the distances along all axes, so on
    more than the distance in the sequence.
    """

    def waves(self, positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
        angles = self.coordinates(positions)[:, None] * frequencies
        return angles.cos(), angles.sin()

    def coordinates(self, positions: Tensor) -> Tensor:
        """Return the coordinate [b|1 t c/2] by which each pair turns, for positions [b|1 t]."""
        raise NotImplementedError

    @staticmethod
    def repeat_axes(axes: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
        """Repeat the coordinate [b|1 t] of each axis for as many pairs as it has."""
        repeated = [x[..., None].expand(-1, -1, n) for x, n in zip(axes, counts, strict=True)]
        return torch.cat(repeated, dim=-1)

    def naive_rotate(
        self, x: Tensor, positions: Tensor, *, head: int, length: int, of: Literal["query", "key"]
    ) -> Tensor:
        rotated, frequencies = x.clone(), self.naive_frequencies(length)
        for i, frequency in enumerate(frequencies):
            angle = self.naive_coordinate(i, positions).to(x.dtype) * frequency
            pair = [i, i + len(frequencies)] if self.layout == "half_split" else [2 * i, 2 * i + 1]
            first, second = x[..., pair].unbind(-1)
            rotated[..., pair[0]] = first * torch.cos(angle) - second * torch.sin(angle)
            rotated[..., pair[1]] = first * torch.sin(angle) + second * torch.cos(angle)
        return rotated

    def naive_coordinate(self, pair: int, positions: Tensor) -> Tensor:
        """Return the coordinate by which a pair turns."""
        raise NotImplementedError
