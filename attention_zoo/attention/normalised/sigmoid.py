"""Sigmoid attention (Ramapuram et al. 2024)."""

import math
from typing import Any

from torch import Tensor

from attention_zoo.attention.softmax import ExplicitScoresAttention, register_softmax
from attention_zoo.errors import check_positive
from attention_zoo.precision import upcast


@register_softmax(
    name="sigmoid",
    paper="Ramapuram et al. 2024, arXiv 2409.04431",
    equation="σ(QKᵀ/√c − log n) V",
    reference="closed form",
    deviations="n is an option, not the length at hand, so that neither decoding nor padding "
    "changes the weights; the bias is not learned; none of the norms that the paper adds",
    weights="nonnegative",
    # Training needs weights whose sums are not large at the start, which n decides, says the paper.
    search_space={"length": (64, 1024)},
)
class SigmoidAttention(ExplicitScoresAttention):
    """Each key gets its weight independently of the others.

        a_ij = σ(s_ij − log n),   out_i = Σ_j a_ij V_j

    The bias − log n makes the weights of n keys add up to about 1 at first, as softmax does.

    Args:
        length: n, the usual length of a sequence, in tokens; others may be longer or shorter.
    """

    def __init__(self, *, length: int = 256, **options: Any) -> None:
        super().__init__(**options)
        check_positive(length=length)
        self.length = length

    def normalise(self, scores: Tensor, visible: Tensor | None) -> Tensor:
        # In half precision log n would cost half of a score's digits.
        weights = (upcast(scores) - math.log(self.length)).sigmoid().to(scores.dtype)
        return weights if visible is None else weights.masked_fill(~visible, 0.0)

    def naive_weights(self, head: int, scores: Tensor) -> Tensor:
        return 1 / (1 + self.length * (-scores).exp())
