"""Rotary positions on a part of each head (Black et al. 2022)."""

import math
from typing import Any

import torch
from torch import Tensor

from attention_zoo.errors import UserError
from attention_zoo.position.rotary.rotary import RotaryEncoding
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="partial_rotary",
    also_called=("partial_rope",),
    paper="Su et al. 2021, arXiv 2104.09864, eq. 34; Black et al. 2022, arXiv 2204.06745",
    equation="the first r channels of q_t and k_s rotated as by rotary, ω_i = base^(−2i/r)",
    reference="transformers PhiAttention",
    acts=("heads",),
)
class PartialRotaryEncoding(RotaryEncoding):
    """Rotates the first r of a head's c channels, as `rotary` does in a head of that width.

    The other channels carry no position. The frequencies run over the r rotated channels only.

    Args:
        fraction: of the channels; r is the largest even number up to fraction·c, and 2 at least.
    """

    # What the other channels are multiplied by.
    plain_magnitude: float = 1.0

    def __init__(self, *, fraction: float = 0.5, **options: Any) -> None:
        if not 0.0 < fraction <= 1.0:
            raise UserError(f"fraction must be above 0 and at most 1, got {fraction}.")
        self.fraction = fraction  # Before the base asks for the width.
        super().__init__(**options)

    @property
    def width(self) -> int:
        # A little more, as 0.29·200 is 57.99….
        return max(2, 2 * math.floor(self.fraction * self.head_dim / 2 + 1e-9))

    def rotate_pairs(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.width == x.shape[-1]:
            return super().rotate_pairs(x, cos, sin)
        rotated, plain = x.split([self.width, x.shape[-1] - self.width], dim=-1)
        rotated = super().rotate_pairs(rotated, cos, sin)
        return torch.cat([rotated, plain * self.plain_magnitude], dim=-1)

    def naive_frequencies(self, length: int) -> list[float]:
        r = 2
        while r + 2 <= self.fraction * self.head_dim + 1e-9:
            r += 2
        return [self.base ** (-2 * i / r) for i in range(r // 2)]
