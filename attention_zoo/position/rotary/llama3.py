"""The rescaling of Llama 3.1 (Grattafiori et al. 2024)."""

import math
from typing import Any

import torch
from torch import Tensor

from attention_zoo.errors import UserError
from attention_zoo.position.rotary.scaled import OriginalLengthScaledRotary
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="llama3",
    paper="Grattafiori et al. 2024, arXiv 2407.21783, and the authors' code",
    equation="rotary with (1 − m_i)·ω_i/s + m_i·ω_i, m linear in the rotations L·ω_i/2π",
    reference="transformers LlamaAttention(rope_type=llama3)",
    deviations="the paper does not say it: it is in the code of Llama 3.1, whose factor is 8 "
    "and whose base is 500,000",
    acts=("heads",),
)
class Llama3Scaling(OriginalLengthScaledRotary):
    """Slows down, by the factor s, only the pairs that rotate few times within the training length.

    A pair that makes r = L·ω_i/2π rotations within L, the length in training, gets ω_i/s up to
    `low_freq_factor` rotations (m = 0), and ω_i from `high_freq_factor` rotations on (m = 1);
    between, m = (r − low)/(high − low). Unlike with `yarn`, scores are not sharpened.

    Args:
        factor: s, by which the length of sequences grows.
        original_length: L, the length of sequences in training, in tokens.
        low_freq_factor: in rotations.
        high_freq_factor: in rotations.
    """

    def __init__(
        self, *, low_freq_factor: float = 1.0, high_freq_factor: float = 4.0, **options: Any
    ) -> None:
        super().__init__(**options)
        if not high_freq_factor > low_freq_factor > 0:
            raise UserError(
                "high_freq_factor must be above low_freq_factor, and both above 0, got "
                f"high_freq_factor={high_freq_factor}, low_freq_factor={low_freq_factor}."
            )
        self.low_freq_factor = low_freq_factor
        self.high_freq_factor = high_freq_factor

    def frequencies(self, x: Tensor) -> Tensor:
        plain = super().frequencies(x)
        rotations = self.original_length * plain / (2 * math.pi)
        m = (rotations - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return torch.lerp(plain / self.factor, plain, m.clamp(0.0, 1.0))

    def naive_frequencies(self, length: int) -> list[float]:
        frequencies = []
        for plain in super().naive_frequencies(length):
            ramp = self.original_length * plain / (2 * math.pi) - self.low_freq_factor
            m = min(max(ramp / (self.high_freq_factor - self.low_freq_factor), 0), 1)
            frequencies.append((1 - m) * plain / self.factor + m * plain)
        return frequencies
