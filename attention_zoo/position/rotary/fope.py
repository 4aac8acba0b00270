"""Fourier position embedding, FoPE (Hua et al. 2024)."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from attention_zoo.errors import UserError
from attention_zoo.position.rotary.rotary import RotaryEncoding
from attention_zoo.position.rotary.scaled import check_original_length
from attention_zoo.precision import autocast_disabled
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="fope",
    paper="Hua et al. 2024, arXiv 2412.17739",
    equation="rotary with Σ_j A_ji cos(t·ω_j) and Σ_j B_ji sin(t·ω_j) for the pairs i with "
    "ω_i ≥ 2π/L, and no rotation for the slower ones",
    reference="closed form",
    acts=("heads",),
    per_layer=True,
    relative=False,
    deviations="all heads of a layer share the coefficients, as do heads that share a key; in the "
    "authors' code each has its own. Every pair that is fast enough has a series, where that code "
    "has it for half of the pairs at most; slower pairs have the frequency 0, as in the paper, "
    "where that code sets both sine and cosine to 1, which doubles their part of the score",
)
class FourierEncoding(RotaryEncoding):
    """Rotates each pair by a series of the frequencies of all pairs, and drops slow frequencies.

        cos_i(t) = Σ_j A_ji cos(t·ω_j),   sin_i(t) = Σ_j B_ji sin(t·ω_j),   ω_j = base^(−2j/c)

    over the pairs that complete a turn within the length L in training, and at least the fastest.
    A and B are the identity plus a Gaussian draw, are not trained, and belong to the state dict.
    The other pairs are not rotated. A product of the series depends on both positions, not on
    their distance alone.

    Args:
        original_length: L, the length of sequences in training, in tokens.
        gain: of the draw, whose deviation is gain/√m for m pairs; 0 is rotary without the slow
            frequencies.
    """

    cos_coefficients: Tensor
    sin_coefficients: Tensor

    def __init__(
        self, *, original_length: int | None = 512, gain: float = 0.3, **options: Any
    ) -> None:
        super().__init__(**options)
        if gain < 0:
            raise UserError(f"gain must be at least 0, got {gain}.")
        self.original_length = check_original_length(self, original_length)
        # ω_i ≥ 2π/L, i ≤ c/2·log_base(L/2π).
        last = self.width / 2 * math.log(self.original_length / (2 * math.pi), self.base)
        self.pairs = min(max(math.floor(last + 1e-9) + 1, 1), self.width // 2)
        for name in ("cos_coefficients", "sin_coefficients"):
            drawn = gain * self.pairs**-0.5 * torch.randn(self.pairs, self.pairs)
            self.register_buffer(name, torch.eye(self.pairs) + drawn)

    def waves(self, positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[:, None, :, None] * frequencies[: self.pairs]
        with autocast_disabled(angles):
            cos = angles.cos() @ self.cos_coefficients.to(angles.dtype)
            sin = angles.sin() @ self.sin_coefficients.to(angles.dtype)
        slow = (*cos.shape[:-1], self.width // 2 - self.pairs)
        return torch.cat([cos, cos.new_ones(slow)], -1), torch.cat([sin, sin.new_zeros(slow)], -1)

    def naive_rotate(
        self, x: Tensor, positions: Tensor, *, head: int, length: int, of: Literal["query", "key"]
    ) -> Tensor:
        """Rotate pair by pair, with a series for each pair that turns once within L."""
        count, rotated = self.head_dim // 2, x.clone()
        frequencies = [self.base ** (-i / count) for i in range(count)]
        shortest = 2 * math.pi / self.original_length
        fast = [w for i, w in enumerate(frequencies) if i == 0 or w >= shortest * (1 - 1e-9)]
        t = positions.to(x.dtype)
        for i in range(len(fast)):
            cos = sum(self.cos_coefficients[j, i] * torch.cos(t * w) for j, w in enumerate(fast))
            sin = sum(self.sin_coefficients[j, i] * torch.sin(t * w) for j, w in enumerate(fast))
            pair = (i, i + count) if self.layout == "half_split" else (2 * i, 2 * i + 1)
            first, second = (x[..., channel] for channel in pair)
            rotated[..., pair[0]] = first * cos - second * sin
            rotated[..., pair[1]] = second * cos + first * sin
        return rotated
