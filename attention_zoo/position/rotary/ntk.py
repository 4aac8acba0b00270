"""NTK-aware scaling of rotary positions (bloc97 2023)."""

from torch import Tensor

from attention_zoo.position.rotary.scaled import ScaledRotary
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="ntk",
    also_called=("ntk_aware",),
    paper="bloc97 2023 (r/LocalLLaMA), described by Peng et al. 2023, arXiv 2309.00071, §3.1",
    equation="rotary with base·factor^(c/(c−2))",
    reference="x-transformers Attention(RotaryEmbedding(base_rescale_factor))",
    acts=("heads",),
)
class NtkScaling(ScaledRotary):
    """Rotary positions with the base times factor^(c/(c−2)).

    The slowest pair slows down by the whole factor, as with `linear_interpolation`. The fastest,
    which tells neighbours apart, keeps its frequency, so models need no further training. The pairs
    between slow down by less than the factor, so sequences can grow by somewhat less than it.

    Args:
        factor: by which the length of sequences grows.
    """

    def frequencies(self, x: Tensor) -> Tensor:
        return super().frequencies(x) / self.stretch(x, self.factor)

    def naive_frequencies(self, length: int) -> list[float]:
        return self.naive_rebased_frequencies(self.factor)
