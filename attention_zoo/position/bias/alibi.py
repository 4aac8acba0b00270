"""Attention with linear biases (Press et al. 2022)."""

import math

import torch
from torch import Tensor

from attention_zoo.position.base import NaiveScoreInputs, PositionalEncoding
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="alibi",
    paper="Press et al. 2022, arXiv 2108.12409, §3",
    equation="q_t·k_s/√c − m_h·|t − s|",
    reference="transformers BloomAttention",
    acts=("scores",),
    deviations="without causality the distance is symmetric, |t − s|",
)
class AlibiEncoding(PositionalEncoding):
    """Lowers the score of a key by its distance times a slope of the head: − m_h·|t − s|.

    For h heads, a power of two, the slopes are 2^(−8i/h), i = 1 … h. For another number, those
    of the next lower power of two, then every second one of the next higher, as in the authors'
    code.
    """

    @property
    def slopes(self) -> Tensor:
        """Return the slope of each head, [h]."""
        slopes = compute_slopes(self.heads)
        return torch.tensor(slopes, dtype=self.dtype, device=self.typed.device)

    def score_bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        distance = (q_positions[:, :, None] - k_positions[:, None, :]).abs()
        return -self.slopes[:, None, None] * distance[:, None]

    def naive_bias(self, inputs: NaiveScoreInputs) -> Tensor:
        # The slopes of a power of two of heads are a geometric sequence. Further heads get every
        # second slope of twice as many.
        power = 2 ** int(math.log2(self.heads))
        exponent = inputs.head + 1 if inputs.head < power else inputs.head - power + 0.5
        return -(2.0 ** (-8.0 * exponent / power)) * inputs.distances.abs()


def compute_slopes(heads: int) -> list[float]:
    """Return the slope of each head, as the class says."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8.0 * i / power) for i in range(1, power + 1)]
    between = [2.0 ** (-4.0 * i / power) for i in range(1, 2 * power + 1, 2)]
    return slopes + between[: heads - power]
