"""Multiplicative GRAPE, rotary positions with learned frequencies (Zhang et al. 2025)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from attention_zoo.position.rotary.rotary import RotaryEncoding
from attention_zoo.precision import upcast
from attention_zoo.zoo import POSITION

SCALE = 16.0  # of the parameters, so that a step of an optimiser changes frequencies by less


@POSITION.register(
    name="grape_multiplicative",
    also_called=("grape",),
    paper="Zhang et al. 2025, arXiv 2512.07805 (GRAPE-M, commuting), and the authors' code",
    equation="rotary with ω_i = base^(−2i/c)·exp(δ_i/16), δ learned",
    reference="closed form",
    acts=("heads",),
    per_layer=True,
    deviations="the planes are pairs of channels, as in the authors' code: neither planes that are "
    "learned, which the projections can learn, nor generators that do not commute. δ is the "
    "difference to the logarithm of the first frequency, which that code learns as a whole",
)
class GrapeMultiplicativeEncoding(RotaryEncoding):
    """Rotary positions whose frequencies each layer learns, from those of `rotary` on.

    The group element of position t is exp(t·Σ_i ω_i L_i), L_i the generator of the rotation of pair
    i. The heads of a layer share the frequencies.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.log_ratio = nn.Parameter(torch.zeros(self.width // 2))

    def frequencies(self, x: Tensor) -> Tensor:
        return super().frequencies(x) * (upcast(self.log_ratio) / SCALE).exp()

    def naive_rotate(
        self, x: Tensor, positions: Tensor, *, head: int, length: int, of: Literal["query", "key"]
    ) -> Tensor:
        """Multiply by the exponential of the generator, [c c], for each position."""
        generator = torch.zeros(self.head_dim, self.head_dim, dtype=x.dtype)
        for i, frequency in enumerate(self.naive_frequencies(length)):
            count = self.head_dim // 2
            first, second = (i, i + count) if self.layout == "half_split" else (2 * i, 2 * i + 1)
            plane = torch.zeros_like(generator)
            plane[second, first], plane[first, second] = 1.0, -1.0
            generator = generator + plane * frequency * torch.exp(self.log_ratio[i] / 16)
        elements = torch.matrix_exp(positions[..., None, None].to(x.dtype) * generator)
        return (elements @ x[..., None])[..., 0]
