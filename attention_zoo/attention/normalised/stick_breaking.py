"""Stick-breaking attention (Tan et al. 2024)."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from attention_zoo.attention.softmax import ExplicitScoresAttention, register_softmax
from attention_zoo.precision import upcast


@register_softmax(
    name="stick_breaking",
    paper="Tan et al. 2024, arXiv 2410.17980",
    equation="a_ij = β_ij Π_{j<l≤i} (1 − β_il), β = σ(QKᵀ/√c)",
    reference="flash-linear-attention naive_stickbreaking_attn",
    deviations="a query sees its own key too, as the authors' code offers, so that the first "
    "one sees any; what is left of the stick goes nowhere",
    roles=("causal",),
    weights="nonnegative",
)
class StickBreakingAttention(ExplicitScoresAttention):
    """Each key in turn, from the query backwards, takes a share of what the later keys left.

        a_ij = β_ij Π_{j < l ≤ i} (1 − β_il),   β_ij = σ(s_ij)

    over visible keys. The weights add up to at most 1. They depend on the order of the keys, so no
    encoding is needed. The products are computed as sums of logarithms.
    """

    def normalise(self, scores: Tensor, visible: Tensor | None) -> Tensor:
        # Sums over all keys lose too much in half precision.
        exact = upcast(scores)
        log_rests = logsigmoid(-exact)
        if visible is not None:
            log_rests = log_rests.masked_fill(~visible, 0.0)
        # A sum from the end, not a difference of sums: near the end the sums are close to zero.
        log_left = log_rests.flip(-1).cumsum(dim=-1).flip(-1) - log_rests
        weights = (logsigmoid(exact) + log_left).exp().to(scores.dtype)
        return weights if visible is None else weights.masked_fill(~visible, 0.0)

    def naive_weights(self, head: int, scores: Tensor) -> Tensor:
        """Compute the products of the parts that are left."""
        parts = 1 / (1 + torch.exp(-scores.flip(0)))
        left = torch.cat([parts.new_ones(1), torch.cumprod(1 - parts, dim=0)[:-1]])
        return (parts * left).flip(0)
