"""What decoding remembers of the tokens it has seen.

Every cache counts them (`length`), and can be reordered along its batch, as beam search needs; an
index that repeats rows also multiplies them.
"""

from typing import Protocol

import torch
from torch import Tensor


class Cache(Protocol):
    length: int

    def reorder(self, index: Tensor) -> None: ...


class KeyValueCache:
    """Keys and values [b g k c] of all tokens, with their positions [b k].

    Of the last `window` tokens only, where one is given: the rest can never be attended to again.
    """

    def __init__(self, window: int | None = None) -> None:
        self.window = window
        self.length = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.positions: Tensor | None = None

    def append(
        self, keys: Tensor, values: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take in new tokens; return the kept ones with the new ones behind them."""
        self.length += keys.shape[-2]
        positions = positions.expand(keys.shape[0], -1)
        if self.keys is not None and self.values is not None and self.positions is not None:
            keys = torch.cat([self.keys, keys], dim=-2)
            values = torch.cat([self.values, values], dim=-2)
            positions = torch.cat([self.positions, positions], dim=-1)
        self.keys, self.values, self.positions = keys, values, positions
        if self.window is not None and keys.shape[-2] > self.window:
            # Copies: a slice would hold on to all of a long prompt.
            self.keys = keys[..., -self.window :, :].clone()
            self.values = values[..., -self.window :, :].clone()
            self.positions = positions[:, -self.window :].clone()
        return keys, values, positions

    def reorder(self, index: Tensor) -> None:
        if self.keys is not None and self.values is not None and self.positions is not None:
            self.keys = self.keys.index_select(0, index)
            self.values = self.values.index_select(0, index)
            self.positions = self.positions.index_select(0, index)


class StateCache:
    """Tensors [b …] of constant size, replaced as tokens come."""

    def __init__(self) -> None:
        self.length = 0
        self.state: tuple[Tensor, ...] | None = None

    def reorder(self, index: Tensor) -> None:
        if self.state is not None:
            self.state = tuple(part.index_select(0, index) for part in self.state)


class LayeredCache:
    """The caches of a decoder: for each layer those of its sublayers, None where there is none."""

    def __init__(self, layers: list[list[Cache | None]]) -> None:
        self.layers = layers
        self.length = 0

    def reorder(self, index: Tensor) -> None:
        for caches in self.layers:
            for cache in caches:
                if cache is not None:
                    cache.reorder(index)
