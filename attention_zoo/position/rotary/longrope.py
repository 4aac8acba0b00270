"""LongRoPE (Ding et al. 2024)."""

import math
from typing import Any

import torch
from torch import Tensor

from attention_zoo.errors import UserError
from attention_zoo.position.rotary.scaled import GrowingRotary
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="longrope",
    paper="Ding et al. 2024, arXiv 2402.13753",
    equation="rotary with ω_i/λ_i, λ of short or of long sequences, times √(1 + ln s/ln L)",
    reference="transformers LlamaAttention(rope_type=longrope)",
    deviations="the factors λ are options, which the paper searches on a trained model; not "
    "given, the long ones are those of NTK, a point of the search space. The first tokens are "
    "no exception, as they may be in the paper. The position of a query decides whether the "
    "sequence is long, and its keys are rotated accordingly; in transformers the whole length "
    "decides for all queries",
    acts=("length",),
    roles=("causal",),
    relative=False,
)
class LongRope(GrowingRotary):
    """Each pair has two factors: the second divides its frequency where n > L, otherwise the first.

    n is the length so far, L that in training. With s = factor, all cosines and sines are
    multiplied by √(1 + ln s/ln L).

    Args:
        factor: s, by which the length of sequences grows.
        original_length: L, the length of sequences in training, in tokens.
        short_factor: of each of the c/2 pairs, up to L tokens; default: 1.
        long_factor: beyond; default: s^(2i/(c−2)).
    """

    def __init__(
        self,
        *,
        short_factor: list[float] | None = None,
        long_factor: list[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        pairs = self.width // 2
        for name, factors in (("short_factor", short_factor), ("long_factor", long_factor)):
            if factors is None:
                continue
            if not isinstance(factors, list) or len(factors) != pairs or min(factors) <= 0:
                raise UserError(
                    f"{name} must be a list of {pairs} positive numbers, one for each pair of "
                    f"channels, got {factors!r}."
                )
        self.short_factor = short_factor or [1.0] * pairs
        self.long_factor = long_factor
        self.magnitude = math.sqrt(1 + math.log(self.factor) / math.log(self.original_length))

    def stage(self, lengths: Tensor) -> Tensor:
        return lengths > self.original_length

    def frequencies_at(self, stage: Tensor, x: Tensor) -> Tensor:
        plain = self.frequencies(x)
        long = self.stretch(x, self.factor)
        if self.long_factor is not None:
            long = plain.new_tensor(self.long_factor)
        return plain / torch.where(stage, long, plain.new_tensor(self.short_factor))

    def naive_frequencies(self, length: int) -> list[float]:
        is_long = length > self.original_length
        if is_long and self.long_factor is None:
            return self.naive_rebased_frequencies(self.factor)
        factors = self.long_factor if is_long and self.long_factor else self.short_factor
        plain = super().naive_frequencies(length)
        return [frequency / factor for frequency, factor in zip(plain, factors, strict=True)]

    def naive_magnitude(self) -> float:
        return (1 + math.log(self.factor, self.original_length)) ** 0.5
