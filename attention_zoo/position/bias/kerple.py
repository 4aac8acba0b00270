"""Kernelized relative biases (Chi et al. 2022)."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from attention_zoo.errors import UserError
from attention_zoo.position.base import NaiveScoreInputs, PositionalEncoding
from attention_zoo.precision import upcast
from attention_zoo.zoo import POSITION

Kernel = Literal["log", "power"]
# r₁ and r₂ are drawn uniformly between 0 and these, as in the authors' code; 0.01 at least.
START: dict[Kernel, tuple[float, float]] = {"log": (2.0, 1.0), "power": (1.0, 2.0)}


@POSITION.register(
    name="kerple",
    paper="Chi et al. 2022, arXiv 2205.09921",
    equation="q_t·k_s/√c − r₁ log(1 + r₂|t − s|), or q_t·k_s/√c − r₁|t − s|^r₂",
    reference="closed form",
    acts=("scores",),
    deviations="the logarithmic and the power kernel, as biases, not as weights; softplus (and "
    "2σ, where r₂ ≤ 2) keeps parameters in their range, where the authors' code clamps them "
    "before each pass; without causality the distance is symmetric, |t − s|",
)
class KerpleEncoding(PositionalEncoding):
    """Lowers the score of a key by a conditionally positive definite kernel of its distance.

        log:    r₁ log(1 + r₂|t − s|),   r₁, r₂ > 0
        power:  r₁ |t − s|^r₂,           r₁ > 0, 0 < r₂ ≤ 2

    r₁ and r₂ are learned for each head, and shared by all layers, as in the authors' code.

    Args:
        kernel: `log` or `power`.
    """

    def __init__(self, *, kernel: Kernel = "log", **sizes: Any) -> None:
        super().__init__(**sizes)
        if kernel not in get_args(Kernel):
            raise UserError(f"kernel must be one of {', '.join(get_args(Kernel))}, got {kernel!r}.")
        self.kernel = kernel
        first, second = ((r * torch.rand(self.heads)).clamp(min=0.01) for r in START[kernel])
        self.raw_first = nn.Parameter(first.expm1().log())
        self.raw_second = nn.Parameter(
            second.expm1().log() if kernel == "log" else (second / 2).logit()
        )

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """Return r₁ and r₂ of each head, [h], in float32 at least."""
        first, second = upcast(self.raw_first), upcast(self.raw_second)
        return softplus(first), softplus(second) if self.kernel == "log" else 2 * second.sigmoid()

    def score_bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        first, second = (r[:, None, None] for r in self.coefficients())
        distance = (q_positions[:, None, :, None] - k_positions[:, None, None, :]).abs()
        if self.kernel == "log":
            return -first * torch.log1p(second * distance)
        return -first * distance.to(second.dtype) ** second

    def naive_bias(self, inputs: NaiveScoreInputs) -> Tensor:
        distances = inputs.distances.abs()
        first = torch.log(1 + torch.exp(self.raw_first[inputs.head]))
        second = self.raw_second[inputs.head]
        if self.kernel == "log":
            return -first * torch.log(1 + torch.log(1 + torch.exp(second)) * distances)
        return -first * distances ** (2 / (1 + torch.exp(-second)))
