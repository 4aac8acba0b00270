"""Attention by learned features (Zhang et al. 2024)."""

from typing import Any

from attention_zoo.attention.kernel.feature_maps.hedgehog import HedgehogFeatures
from attention_zoo.attention.kernel.linear import LinearAttention
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="hedgehog",
        paper="Zhang et al. 2024, arXiv 2402.04347",
        equation="φ(q)(Σ φ(k)ᵀv) / φ(q) Σ φ(k), φ(x) = softmax([W x, −W x])",
        reference="closed form",
        deviations="trained with the task alone, not to mimic the weights of softmax attention; "
        "rotary positions as in linear",
        roles=("causal", "global", "cross"),
        masks=("causal", "key_mask", "segment_ids", "query_segment_ids"),
        positions=("positions", "embeddings", "heads"),
        cache="sums of φ(k)ᵀv and φ(k)",
        cost="t",
    )
)
class HedgehogAttention(LinearAttention):
    """Linear attention with features that each head learns, as spiky as those of softmax."""

    decided_options = ("feature_map",)

    def __init__(self, **options: Any) -> None:
        super().__init__(feature_map=HedgehogFeatures, **options)
