"""Adaptively sparse attention (Correia et al. 2019)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.attention.normalised.sparse import SparseAttention, entmax, shift_scores
from attention_zoo.attention.softmax import register_softmax


@register_softmax(
    name="entmax",
    paper="Correia et al. 2019, arXiv 1909.00015",
    equation="[(α_h − 1) s_ij − τ_i]₊^(1/(α_h − 1)), τ_i such that Σ_j = 1, α_h learned",
    reference="entmax entmax_bisect",
)
class EntmaxAttention(SparseAttention):
    """Attention by α-entmax, where each head learns how sparse it is.

        a_i = [(α − 1) s_i − τ_i]₊^(1/(α − 1)),   τ_i such that Σ_j a_ij = 1,   α = 1 + σ(shape)

    Towards α = 1 it is softmax, at 1.5 entmax15, towards 2 sparsemax. It starts at 1.5. The
    threshold τ_i is found by bisection, to the last bit.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.shape = nn.Parameter(torch.zeros(self.heads))

    def map_scores(self, scores: Tensor) -> Tensor:
        alpha = 1.0 + self.shape.sigmoid()
        return entmax(scores, alpha[:, None, None].to(scores.dtype), entmax_by_bisection)

    def naive_weights(self, head: int, scores: Tensor) -> Tensor:
        """Find the root by Newton's method, whose last step carries the gradients."""
        alpha = 1 + 1 / (1 + torch.exp(-self.shape[head]))
        scores = (alpha - 1) * (scores - scores.max())
        # Left of the root of a convex falling function, Newton's method goes to it from there.
        threshold = scores.new_tensor(-1.0)
        for _ in range(30):
            above = (scores - threshold.detach()).clamp(min=0)
            excess = (above ** (1 / (alpha - 1))).sum() - 1
            slope = (above ** (1 / (alpha - 1) - 1)).sum() / (alpha - 1)
            threshold = threshold.detach() + excess / slope.detach()
        return (scores - threshold).clamp(min=0) ** (1 / (alpha - 1))


def entmax_by_bisection(scores: Tensor, alpha: Tensor) -> Tensor:
    """Compute α-entmax by bisection.

    The largest score has at most the whole weight, so τ is at least that score − 1. Of n equal
    scores each has the weight 1/n, so τ is at most that score − n^(1 − α).

    Args:
        scores: [… k].
        alpha: [… 1], between 1 and 2.
    """
    scores = shift_scores(scores * (alpha - 1))
    power = 1 / (alpha - 1)
    low = torch.full_like(scores[..., :1], -1.0)
    width = 1 - scores.shape[-1] ** (1 - alpha)
    for _ in range(1 - math.frexp(torch.finfo(scores.dtype).eps)[1]):
        width = width / 2
        total = ((scores - low - width).clamp(min=0) ** power).sum(dim=-1, keepdim=True)
        low = torch.where(total >= 1, low + width, low)
    weights = (scores - low).clamp(min=0) ** power
    return weights / weights.sum(dim=-1, keepdim=True)
