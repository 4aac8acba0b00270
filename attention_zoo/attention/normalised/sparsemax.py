"""Sparsemax attention (Martins and Astudillo 2016)."""

import torch
from torch import Tensor

from attention_zoo.attention.normalised.sparse import SparseAttention, entmax, shift_scores
from attention_zoo.attention.softmax import register_softmax


@register_softmax(
    name="sparsemax",
    paper="Martins and Astudillo 2016, arXiv 1602.02068",
    equation="[s_ij − τ_i]₊, τ_i such that Σ_j = 1",
    reference="entmax sparsemax",
    # The weights have no jumps where a key comes or goes, but their gradients have.
    chooses="keys with any weight",
)
class SparsemaxAttention(SparseAttention):
    """The scores of a query are projected on the probability distributions.

        a_i = argmin_p ‖p − s_i‖² = [s_i − τ_i]₊,   τ_i such that Σ_j a_ij = 1

    The threshold τ_i is found by sorting.
    """

    def map_scores(self, scores: Tensor) -> Tensor:
        return entmax(scores, scores.new_tensor(1.0), sparsemax_by_sorting)

    def naive_weights(self, head: int, scores: Tensor) -> Tensor:
        """Find the support by leaving out, repeatedly, the keys that would get no weight."""
        support = torch.ones_like(scores, dtype=torch.bool)
        for _ in scores:
            threshold = (scores[support].sum() - 1) / support.sum()
            support = scores > threshold
        return (scores - threshold) * support


def sparsemax_by_sorting(scores: Tensor, excess: Tensor) -> Tensor:
    """Compute sparsemax of scores [… k]; α is 2.

    Let s be the scores in falling order. The support is the first k, for the largest k with
    1 + k s_k > Σ_{j ≤ k} s_j.
    """
    scores = shift_scores(scores)
    falling = scores.sort(dim=-1, descending=True).values
    counts = torch.arange(1, scores.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
    sums = falling.cumsum(dim=-1)
    size = (1 + counts * falling > sums).sum(dim=-1, keepdim=True)
    return (scores - (sums.gather(-1, (size - 1).clamp(min=0)) - 1) / size).clamp(min=0)
