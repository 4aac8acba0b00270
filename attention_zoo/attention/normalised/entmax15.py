"""Attention by 1.5-entmax (Peters et al. 2019)."""

import torch
from torch import Tensor

from attention_zoo.attention.normalised.sparse import SparseAttention, entmax, shift_scores
from attention_zoo.attention.softmax import register_softmax


@register_softmax(
    name="entmax15",
    paper="Peters et al. 2019, arXiv 1905.05702",
    equation="[s_ij/2 − τ_i]₊², τ_i such that Σ_j = 1",
    reference="entmax entmax15",
)
class Entmax15Attention(SparseAttention):
    """Between softmax and sparsemax, weights that reach zero smoothly.

        a_i = [s_i/2 − τ_i]₊²,   τ_i such that Σ_j a_ij = 1

    The threshold τ_i is found by sorting.
    """

    def map_scores(self, scores: Tensor) -> Tensor:
        return entmax(scores, scores.new_tensor(0.5), entmax15_by_sorting)

    def naive_weights(self, head: int, scores: Tensor) -> Tensor:
        """Find the support by leaving out, repeatedly, the keys that would get no weight."""
        halves = scores / 2
        support = torch.ones_like(scores, dtype=torch.bool)
        for _ in scores:
            mean = halves[support].mean()
            variance = ((halves[support] - mean) ** 2).mean()
            # With too many keys there is no solution yet: then those below the mean have no weight.
            threshold = mean - (1 / support.sum().to(scores.dtype) - variance).clamp(min=0).sqrt()
            support = halves > threshold
        return ((halves - threshold) * support) ** 2


def entmax15_by_sorting(scores: Tensor, excess: Tensor) -> Tensor:
    """Compute 1.5-entmax of scores [… k]; α − 1 is 0.5.

    Let z be the halved scores in falling order, and m and v the mean and variance of the first k.
    Their threshold is τ = m − √(1/k − v). The support is the largest k with τ ≤ z_k.
    """
    halves = shift_scores(scores / 2)
    falling = halves.sort(dim=-1, descending=True).values
    counts = torch.arange(1, halves.shape[-1] + 1, device=halves.device, dtype=halves.dtype)
    means = falling.cumsum(dim=-1) / counts
    variances = (falling**2).cumsum(dim=-1) / counts - means**2
    thresholds = means - (1 / counts - variances).clamp(min=0).sqrt()
    size = (thresholds <= falling).sum(dim=-1, keepdim=True)
    return (halves - thresholds.gather(-1, (size - 1).clamp(min=0))).clamp(min=0) ** 2
