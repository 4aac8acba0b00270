"""YaRN (Peng et al. 2023)."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from attention_zoo.errors import UserError
from attention_zoo.position.rotary.scaled import OriginalLengthScaledRotary
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="yarn",
    paper="Peng et al. 2023, arXiv 2309.00071, §3.2 and §3.4",
    equation="rotary with (1 − m_i)·ω_i/s + m_i·ω_i, times 0.1·ln s + 1",
    reference="transformers LlamaAttention(rope_type=yarn)",
    deviations="m falls linearly with the number of the pair, as in the authors' code; in the "
    "paper it does so with the number of rotations. Of mscale and mscale_all_dim, transformers "
    "multiplies rotated channels by the quotient, and DeepSeek's attention all scores by the "
    "square of the second; here both are multiplied at once",
    acts=("heads",),
)
class Yarn(OriginalLengthScaledRotary):
    """Slows down, by the factor s, only the pairs that rotate few times within the training length.

    A pair that makes `beta_fast` rotations or more within L, the length in training, keeps its
    frequency (m = 1), one of `beta_slow` rotations or fewer gets ω_i/s (m = 0); between, m falls
    linearly from pair to pair. Cosines and sines are multiplied by 0.1·ln s + 1, so that scores
    get its square: attention stays as sharp as it was in shorter sequences.

    Args:
        factor: s, by which the length of sequences grows.
        original_length: L, the length of sequences in training, in tokens.
        beta_fast: in rotations.
        beta_slow: in rotations.
        attention_factor: replaces 0.1·ln s + 1.
        mscale: of DeepSeek's models: rotated channels are multiplied by 0.1·mscale·ln s + 1.
        mscale_all_dim: likewise, for the channels that are not rotated: those beyond `fraction`,
            or those of a mechanism that keeps them apart. Both are given, or neither.
        truncate: whether the ends of the ramp are moved outward, to the next whole pair.
    """

    def __init__(
        self,
        *,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        attention_factor: float | None = None,
        mscale: float | None = None,
        mscale_all_dim: float | None = None,
        truncate: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not beta_fast > beta_slow > 0:
            raise UserError(
                "beta_fast must be above beta_slow, and both above 0, got "
                f"beta_fast={beta_fast}, beta_slow={beta_slow}."
            )
        if attention_factor is not None and attention_factor <= 0:
            raise UserError(f"attention_factor must be above 0, got {attention_factor}.")
        scales = [scale for scale in (mscale, mscale_all_dim) if scale is not None]
        if len(scales) == 1 or min(scales, default=1.0) <= 0:
            raise UserError(
                "position=yarn needs both mscale and mscale_all_dim, above 0, or neither, got "
                f"mscale={mscale}, mscale_all_dim={mscale_all_dim}."
            )
        if scales and attention_factor is not None:
            raise UserError(
                "position=yarn takes either an attention_factor or mscale and mscale_all_dim, got "
                f"attention_factor={attention_factor}, mscale={mscale}."
            )
        self.beta_fast = beta_fast
        self.beta_slow = beta_slow
        self.attention_factor = attention_factor
        self.mscale = mscale
        self.mscale_all_dim = mscale_all_dim
        self.truncate = truncate
        self.magnitude = (
            self.sharpness(mscale or 1.0) if attention_factor is None else attention_factor
        )
        if mscale_all_dim is not None:
            self.plain_magnitude = self.sharpness(mscale_all_dim)

    def sharpness(self, scale: float) -> float:
        """Return 0.1·scale·ln s + 1."""
        return 0.1 * scale * math.log(self.factor) + 1.0

    @property
    def content_magnitude(self) -> float:
        return self.magnitude if self.mscale is None else self.plain_magnitude

    def frequencies(self, x: Tensor) -> Tensor:
        plain = super().frequencies(x)
        first, last = self.pair_with(self.beta_fast), self.pair_with(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0.0), min(last, self.width - 1.0)
        pairs = torch.arange(len(plain), device=x.device, dtype=plain.dtype)
        # In short training a ramp may have no length: 0.001 makes it a step.
        slowed = ((pairs - first) / max(last - first, 0.001)).clamp(0.0, 1.0)
        return plain / self.factor * slowed + plain * (1.0 - slowed)

    def pair_with(self, rotations: float) -> float:
        """Return the (fractional) index of the pair that makes so many rotations in training."""
        wavelength = self.original_length / rotations
        return self.width / 2 * math.log(wavelength / (2 * math.pi)) / math.log(self.base)

    def naive_frequencies(self, length: int) -> list[float]:
        plain = super().naive_frequencies(length)

        def pair_with(rotations: float) -> float:
            angle = 2 * math.pi * rotations
            return len(plain) * math.log(self.original_length / angle, self.base)

        first, last = pair_with(self.beta_fast), pair_with(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * len(plain) - 1)
        frequencies = []
        for i, frequency in enumerate(plain):
            m = 1 - min(max((i - first) / max(last - first, 0.001), 0), 1)
            frequencies.append((1 - m) * frequency / self.factor + m * frequency)
        return frequencies

    def naive_rotate(
        self, x: Tensor, positions: Tensor, *, head: int, length: int, of: Literal["query", "key"]
    ) -> Tensor:
        rotated = super().naive_rotate(x, positions, head=head, length=length, of=of)
        if self.mscale is None:
            return rotated
        is_plain = torch.arange(self.head_dim) >= 2 * len(self.naive_frequencies(length))
        return torch.where(is_plain, self.naive_content_magnitude() * x, rotated)

    def naive_magnitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return 1 + math.log(self.factor) * (1 if self.mscale is None else self.mscale) / 10

    def naive_content_magnitude(self) -> float:
        if self.mscale_all_dim is None:
            return self.naive_magnitude()
        return 1 + math.log(self.factor) * self.mscale_all_dim / 10
