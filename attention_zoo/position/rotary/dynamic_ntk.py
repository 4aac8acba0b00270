"""NTK-aware scaling by the length so far (emozilla 2023)."""

from torch import Tensor

from attention_zoo.position.rotary.scaled import GrowingRotary
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="dynamic_ntk",
    paper="emozilla 2023 (r/LocalLLaMA), described by Peng et al. 2023, arXiv 2309.00071, §3.3",
    equation="rotary with base·(factor·n/L − (factor − 1))^(c/(c−2)) at a length n above L",
    reference="transformers LlamaAttention(rope_type=dynamic)",
    deviations="n is a query's position + 1, as when tokens are decoded one by one with keys "
    "that are rotated anew; transformers takes the whole sequence's length for all queries, "
    "which tells them of the future, and leaves the keys in its cache as they were",
    acts=("length",),
    roles=("causal",),
    relative=False,
)
class DynamicNtkScaling(GrowingRotary):
    """As `ntk`, with a factor that grows with the length n so far: factor·n/L − (factor − 1).

    Up to the length L in training it is plain `rotary`. Beyond L every query has its own
    frequencies, by which all keys are rotated: one pass then costs as much as decoding.

    Args:
        factor: how fast the base grows beyond L. With 1 the factor of `ntk` is n/L, as in Peng et
            al.; a larger one grows that much faster.
        original_length: L, the length of sequences in training, in tokens.
    """

    def stage(self, lengths: Tensor) -> Tensor:
        return lengths.clamp(min=self.original_length)

    def frequencies_at(self, stage: Tensor, x: Tensor) -> Tensor:
        plain = self.frequencies(x)
        growth = self.factor * stage.to(plain.dtype) / self.original_length - (self.factor - 1)
        return plain / self.stretch(x, growth)

    def naive_frequencies(self, length: int) -> list[float]:
        growth = max(length, self.original_length) / self.original_length
        return self.naive_rebased_frequencies(self.factor * growth - (self.factor - 1))
