"""Attention by rectified features and distance (Qin et al. 2022)."""

from functools import partial
from typing import Any

from attention_zoo.attention.kernel.feature_maps.cosformer import CosformerFeatures
from attention_zoo.attention.kernel.linear import LinearAttention
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="cosformer",
        paper="Qin et al. 2022, arXiv 2202.08791",
        equation="Σ relu(q_i)·relu(k_j) cos(π/2·(i − j)/M) v_j, normalised",
        reference="closed form",
        deviations="M is an option, not the length of the input, so that decoding agrees; "
        "cross-attention, whose sides share no positions, has no cosine; 10⁻⁶ is added to the "
        "rectified channels, where theirs bounds the denominator; rotary positions as in linear",
        roles=("causal", "global", "cross"),
        masks=("causal", "key_mask", "segment_ids", "query_segment_ids"),
        positions=("positions", "embeddings", "heads"),
        cache="sums of φ(k)ᵀv and φ(k)",
        cost="t",
    )
)
class CosformerAttention(LinearAttention):
    """Products of rectified channels, smaller for distant tokens.

    Args:
        max_length: M, in tokens: the distance at which the weight is zero. A longer input is
            refused.
    """

    decided_options = ("feature_map",)

    def __init__(self, *, max_length: int = 1024, **options: Any) -> None:
        feature_map = partial(CosformerFeatures, max_length=max_length)
        super().__init__(feature_map=feature_map, **options)
