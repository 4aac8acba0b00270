"""Attention by squares with a learned minimum (Aksenov et al. 2024)."""

from functools import partial
from typing import Any

from attention_zoo.attention.kernel.feature_maps.rebased import RebasedFeatures
from attention_zoo.attention.kernel.linear import LinearAttention
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="rebased",
        paper="Aksenov et al. 2024, arXiv 2402.10644",
        equation="Σ (q'·k'_j)² v_j, normalised, q' = a_q ⊙ norm(q) + b_q, k' = a_k ⊙ norm(k) + b_k",
        reference="flash-linear-attention naive_parallel_rebased",
        deviations="ReBased's linear attention alone, without the convolutions of its other "
        "layers; ε is added to each weight, not to their sum; flash-linear-attention's layer "
        "shares a and b between q and k",
        roles=("causal", "global", "cross"),
        masks=("causal", "key_mask", "segment_ids", "query_segment_ids"),
        positions=("positions", "embeddings", "heads"),
        cache="sums of φ(k)ᵀv and φ(k)",
        cost="t",
    )
)
class RebasedAttention(LinearAttention):
    """Linear attention with a squared product, which can be zero, as Based's features cannot.

    Args:
        feature_dim: n, channels of a query and a key. There are n(n + 1)/2 + 1 features.
    """

    decided_options = ("feature_map",)

    def __init__(self, *, feature_dim: int = 16, **options: Any) -> None:
        feature_map = partial(RebasedFeatures, feature_dim=feature_dim)
        super().__init__(feature_map=feature_map, **options)
