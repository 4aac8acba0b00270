"""Rotary positions without the lowest frequencies, p-RoPE (Barbero et al. 2024)."""

import math
from typing import Any

import torch
from torch import Tensor

from attention_zoo.errors import UserError
from attention_zoo.position.rotary.rotary import RotaryEncoding
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="p_rope",
    paper="Barbero et al. 2024, arXiv 2410.06205",
    equation="rotary with ω_i = base^(−2i/c) for i < p·c/2, and ω_i = 0 beyond",
    reference="transformers LlamaAttention(rope_type=proportional)",
    acts=("heads",),
)
class PRope(RotaryEncoding):
    """Rotates the share p of the pairs that are fastest, and leaves the slowest as they are.

    The pairs that remain have the frequencies that they have in `rotary`. In `partial_rotary` the
    rotated part has low frequencies too. Channels that are not rotated carry content, however far
    away a key is.

    Args:
        fraction: p, up to 1, which is `rotary`. The number of rotated pairs is rounded down, to one
            at least.
    """

    def __init__(self, *, fraction: float = 0.75, **options: Any) -> None:
        super().__init__(**options)
        if not 0.0 < fraction <= 1.0:
            raise UserError(f"fraction must be above 0 and at most 1, got {fraction}.")
        self.fraction = fraction
        # A little more, as 0.29·200 is 57.99….
        self.pairs = max(1, math.floor(fraction * self.head_dim / 2 + 1e-9))

    def frequencies(self, x: Tensor) -> Tensor:
        frequencies = super().frequencies(x)
        is_rotated = torch.arange(len(frequencies), device=x.device) < self.pairs
        return frequencies * is_rotated

    def naive_frequencies(self, length: int) -> list[float]:
        count = self.head_dim // 2
        return [
            self.base ** (-i / count) if i == 0 or i + 1 <= self.fraction * count + 1e-9 else 0.0
            for i in range(count)
        ]
