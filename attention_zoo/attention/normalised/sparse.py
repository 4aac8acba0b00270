"""Attention by α-entmax: weights that add up to one, many of them exactly zero.

    a = argmax_p Σ_j p_j s_j + H_α(p),   H_α(p) = (1 − Σ_j p_j^α) / (α (α − 1))
      = [(α − 1) s − τ]₊^(1/(α − 1)),    τ such that Σ_j a_j = 1

over the probability distributions p (Peters et al. 2019, arXiv 1905.05702). α = 2 is sparsemax,
and α → 1 softmax.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from attention_zoo.attention.softmax import ExplicitScoresAttention
from attention_zoo.precision import upcast


class SparseAttention(ExplicitScoresAttention):
    """entmax(QKᵀ/√c + bias, masked) V; a variant maps scores to weights."""

    def normalise(self, scores: Tensor, visible: Tensor | None) -> Tensor:
        # Thresholds are differences of sums, which lose too much in half precision.
        exact = upcast(scores)
        if visible is None:
            return self.map_scores(exact).to(scores.dtype)
        # Finite: differences of infinite scores would be no numbers.
        exact = exact.masked_fill(~visible, torch.finfo(exact.dtype).min)
        return self.map_scores(exact).masked_fill(~visible, 0.0).to(scores.dtype)

    def map_scores(self, scores: Tensor) -> Tensor:
        """Map scores [b h q k] to weights; scores far below a query's largest get no weight."""
        raise NotImplementedError


def shift_scores(scores: Tensor) -> Tensor:
    """Shift scores, times α − 1, so that their largest is 0.

    A score 1 below it has no weight. So nothing is lost by clamping at −2, where sums stay exact.
    """
    return (scores - scores.amax(dim=-1, keepdim=True)).clamp(min=-2.0)


def entmax(scores: Tensor, excess: Tensor, solver: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Compute α-entmax of scores z [… k] with its gradients; the weights p are `solver(z, α − 1)`.

    The gradients need only the weights p, however these are computed. With s = p^(2 − α) on the
    support, and zero elsewhere (Peters et al. 2019),

        ∂p_i/∂z_j = s_i (δ_ij − s_j / Σ s)

    and by α, of which `excess` is α − 1, as in Correia et al. 2019, but for the scores
    z_i = (p_i^(α − 1) − 1)/(α − 1), which differ from those given by a constant, in place of powers
    whose difference vanishes with α − 1:

        ∂p_i/∂α = [s_i (z_i − Σ s z / Σ s) − (p_i log p_i − s_i Σ p log p / Σ s)] / (α − 1)
    """
    with torch.no_grad():
        weights = solver(scores, excess)
        support = weights > 0
        slope = torch.where(support, weights ** (1 - excess), 0.0)
        share = slope / slope.sum(dim=-1, keepdim=True)
    # Zeros, which carry the gradients.
    change = scores - scores.detach()
    out = weights + slope * (change - (share * change).sum(dim=-1, keepdim=True))
    if not excess.requires_grad:
        return out
    with torch.no_grad():
        logs = torch.where(support, weights, 1.0).log()
        entropies = weights * logs
        z = torch.expm1(excess * logs) / excess
        by_excess = (
            slope * (z - (share * z).sum(dim=-1, keepdim=True))
            - (entropies - share * entropies.sum(dim=-1, keepdim=True))
        ) / excess
    return out + by_excess * (excess - excess.detach())
