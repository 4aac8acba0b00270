"""Attention by 1.5-entmax (Peters et al. 2019)."""

import torch
from torch import Tensor

from attention_zoo.attention.normalised.sparse import SparseAttention, entmax, shifted
from attention_zoo.attention.softmax import SITES_OF_SOFTMAX
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="entmax15",
        paper="Peters et al. 2019, arXiv 1905.05702",
        equation="[s_ij/2 − τ_i]₊², τ_i such that Σ_j = 1",
        reference="entmax entmax15",
        roles=("causal", "global", "cross"),
        masks=("causal", "window", "key_mask", "segment_ids", "query_segment_ids"),
        positions=SITES_OF_SOFTMAX,
        cache="keys and values",
        decode_state="2·t·g·c",
    )
)
class Entmax15Attention(SparseAttention):
    """Between softmax and sparsemax, weights that reach zero smoothly:

        a_i = [s_i/2 − τ_i]₊²,   τ_i such that Σ_j a_ij = 1

    The threshold τ_i is found by sorting.
    """

    def mapped(self, scores: Tensor) -> Tensor:
        return entmax(scores, scores.new_tensor(1.5), by_sorting)

    def naive_weights(self, head: int, scores: Tensor) -> Tensor:
        """With the support found by leaving out, again and again, what would get no weight."""
        halves = scores / 2
        support = torch.ones_like(scores, dtype=torch.bool)
        for _ in scores:
            mean = halves[support].mean()
            spread = ((halves[support] - mean) ** 2).mean()
            # Too many keys have no solution yet: then those below the mean have no weight.
            threshold = mean - (1 / support.sum() - spread).clamp(min=0).sqrt()
            support = halves > threshold
        return ((halves - threshold) * support) ** 2


def by_sorting(scores: Tensor, alpha: Tensor) -> Tensor:
    """1.5-entmax of scores [… k]; α is 1.5.

    With the mean m and variance v of the k first, in falling order, of the halved scores z, their
    threshold is τ = m − √(1/k − v). They are the support for the largest k with τ ≤ z_k.
    """
    halves = shifted(scores / 2)
    falling = halves.sort(dim=-1, descending=True).values
    counts = torch.arange(1, halves.shape[-1] + 1, device=halves.device, dtype=halves.dtype)
    means = falling.cumsum(dim=-1) / counts
    variances = (falling**2).cumsum(dim=-1) / counts - means**2
    thresholds = means - (1 / counts - variances).clamp(min=0).sqrt()
    size = (thresholds <= falling).sum(dim=-1, keepdim=True)
    return (halves - thresholds.gather(-1, size - 1)).clamp(min=0) ** 2
