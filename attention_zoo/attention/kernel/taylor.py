"""Attention by the exponential's Taylor series (Arora et al. 2024)."""

from functools import partial
from typing import Any

from attention_zoo.attention.kernel.feature_maps.taylor import TaylorFeatures
from attention_zoo.attention.kernel.linear import LinearAttention
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="taylor",
        paper="Arora et al. 2024, arXiv 2402.18668",
        equation="Σ (1 + s_j + s_j²/2) v_j, normalised, s_j = q·k_j/√n, q and k of n channels",
        reference="flash-linear-attention naive_parallel_based",
        deviations="Based's linear attention alone, without the sliding windows and convolutions "
        "of its other layers; no ε in the denominator, as 1 + s + s²/2 is at least 1/2",
        roles=("causal", "global", "cross"),
        masks=("causal", "key_mask", "segment_ids", "query_segment_ids"),
        positions=("positions", "embeddings", "heads"),
        cache="sums of φ(k)ᵀv and φ(k)",
        cost="t",
    )
)
class TaylorAttention(LinearAttention):
    """The linear attention of Based: the first terms of exp, for narrow queries and keys.

    Args:
        feature_dim: n, channels of a query and a key. There are 1 + n + n(n + 1)/2 features.
    """

    decided_options = ("feature_map",)

    def __init__(self, *, feature_dim: int = 16, **options: Any) -> None:
        feature_map = partial(TaylorFeatures, feature_dim=feature_dim)
        super().__init__(feature_map=feature_map, **options)
