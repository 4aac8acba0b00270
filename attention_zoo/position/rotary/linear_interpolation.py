"""Positional interpolation (Chen et al. 2023)."""

from torch import Tensor

from attention_zoo.position.rotary.scaled import ScaledRotary
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="linear_interpolation",
    also_called=("position_interpolation",),
    paper="Chen et al. 2023, arXiv 2306.15595",
    equation="rotary with ω_i/factor",
    reference="transformers LlamaAttention(rope_type=linear)",
    acts=("heads",),
)
class LinearInterpolation(ScaledRotary):
    """Rotary positions at t/factor: longer sequences fit into the positions of training.

    All frequencies slow down alike, so neighbours become harder to distinguish; models do well
    after some training at the new length.

    Args:
        factor: by which the length of sequences grows.
    """

    def frequencies(self, x: Tensor) -> Tensor:
        return super().frequencies(x) / self.factor

    def naive_frequencies(self, length: int) -> list[float]:
        return [frequency / self.factor for frequency in super().naive_frequencies(length)]
