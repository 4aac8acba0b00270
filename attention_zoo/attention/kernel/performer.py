"""Attention by random features (Choromanski et al. 2021)."""

from functools import partial
from typing import Any

from attention_zoo.attention.kernel.feature_maps.performer import PerformerFeatures
from attention_zoo.attention.kernel.linear import LinearAttention
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="performer",
        paper="Choromanski et al. 2021, arXiv 2009.14794",
        equation="φ(q)(Σ φ(k)ᵀv) / φ(q) Σ φ(k), φ(x)_i = exp(ω_i·x c^(−1/4) − |x|²/2√c)",
        reference="closed form",
        deviations="the features are drawn once, by a seed, and not again in training; a constant "
        "keeps keys from overflow, not the largest of all keys, which would show the future; no ε "
        "is added; rotary positions as in linear",
        roles=("causal", "global", "cross"),
        masks=("causal", "key_mask", "segment_ids", "query_segment_ids"),
        positions=("positions", "embeddings", "heads"),
        cache="sums of φ(k)ᵀv and φ(k)",
        cost="t",
    )
)
class PerformerAttention(LinearAttention):
    """FAVOR+: positive random features estimate the weights of softmax attention without bias.

    Args:
        features: m, the number of features of a head. The error falls with 1/√m.
        seed: of their draw. They are part of the state dict.
    """

    decided_options = ("feature_map",)

    def __init__(self, *, features: int = 128, seed: int = 0, **options: Any) -> None:
        feature_map = partial(PerformerFeatures, features=features, seed=seed)
        super().__init__(feature_map=feature_map, **options)
