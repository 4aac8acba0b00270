"""Adaptively sparse attention (Correia et al. 2019)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.attention.normalised.sparse import SparseAttention, entmax
from attention_zoo.attention.softmax import register_softmax

# The smallest α − 1. Its square, which the gradients hold, is still a number of float32.
SMALLEST_EXCESS = 1e-18


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
    threshold τ_i is found by bisection, to the last bit. α − 1 is never rounded to 0.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.shape = nn.Parameter(torch.zeros(self.heads))

    def map_scores(self, scores: Tensor) -> Tensor:
        excess = self.shape.to(scores.dtype).sigmoid().clamp(min=SMALLEST_EXCESS)
        return entmax(scores, excess[:, None, None], entmax_by_bisection)

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


def entmax_by_bisection(scores: Tensor, excess: Tensor) -> Tensor:
    """Compute α-entmax by bisection, as (1 + ε (s − t))^(1/ε) with ε = α − 1, also for a tiny ε.

    The largest score has at most the whole weight, so t is at least that score. Of n equal scores
    each has the weight 1/n, so t is at most that score + (1 − n^(−ε))/ε.

    Args:
        scores: [… k].
        excess: [… 1], α − 1, above 0 and at most 1.
    """
    scores = scores - scores.amax(dim=-1, keepdim=True)

    def weigh(threshold: Tensor) -> Tensor:
        return torch.exp(torch.log1p((excess * (scores - threshold)).clamp(min=-1.0)) / excess)

    low = torch.zeros_like(scores[..., :1])
    # A tensor, as torch.compile makes constants of the arguments of `math`.
    count = scores.new_full((), scores.shape[-1])
    width = -torch.expm1(-excess * count.log()) / excess
    for _ in range(1 - math.frexp(torch.finfo(scores.dtype).eps)[1]):
        width = width / 2
        total = weigh(low + width).sum(dim=-1, keepdim=True)
        low = torch.where(total >= 1, low + width, low)
    weights = weigh(low)
    return weights / weights.sum(dim=-1, keepdim=True)
