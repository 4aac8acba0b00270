"""Scaled cosine attention (Liu et al. 2022)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.attention.dense.norms import unit
from attention_zoo.attention.precision import autocast_disabled, upcast
from attention_zoo.attention.softmax import SITES_OF_SOFTMAX, Heads, SoftmaxAttention
from attention_zoo.masks import Mask
from attention_zoo.zoo import ATTENTION, AttentionCard

FLOOR = 0.01  # of τ


@ATTENTION.register(
    AttentionCard(
        name="cosine",
        paper="Liu et al. 2022 (Swin Transformer V2), arXiv 2111.09883, eq. 2",
        equation="softmax(cos(Q, K)/τ + bias) V",
        reference="closed form",
        deviations="the bias is that of the chosen position, if any, in place of a network's",
        roles=("causal", "global", "cross"),
        masks=("causal", "window", "key_mask", "segment_ids", "query_segment_ids"),
        positions=SITES_OF_SOFTMAX,
        cache="keys of length one, and values",
        decode_state="2·t·g·c",
    )
)
class CosineAttention(SoftmaxAttention):
    """softmax(cos(Q, K)/τ + bias) V: how long a query or a key is has no effect.

    Every head learns a temperature τ, kept as log(1/τ). It starts at 0.1 and counts as 0.01 where
    it would be lower.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.scale = 1.0
        self.log_sharpness = nn.Parameter(torch.full((self.heads,), math.log(10.0)))

    def project_query(self, x: Tensor) -> Tensor:
        """cos(Q, K)/τ is the product of these, [b h q c], and the keys of length one."""
        sharpness = self.log_sharpness.clamp(max=-math.log(FLOOR)).exp()
        return unit(upcast(super().project_query(x))) * sharpness[:, None, None]

    def project_key_value(self, source: Tensor) -> tuple[Tensor, Tensor]:
        k, v = super().project_key_value(source)
        return unit(upcast(k)).to(k.dtype), v

    def attend(self, heads: Heads, mask: Mask, last: int) -> Tensor:
        with autocast_disabled(heads.v):
            return super().attend(wide(heads), mask, last).to(heads.v.dtype)

    def weights(self, heads: Heads, visible: Tensor | None) -> Tensor:
        with autocast_disabled(heads.v):
            return super().weights(wide(heads), visible).to(heads.v.dtype)

    def naive_scores(self, head: int, query: Tensor, keys: Tensor) -> Tensor:
        return (query * keys).sum(-1)


def wide(heads: Heads) -> Heads:
    """In float32 at least.

    Scores go up to 1/τ = 100: factors rounded to bfloat16 would make errors of some tenths.
    """
    return heads._replace(q=upcast(heads.q), k=upcast(heads.k), v=upcast(heads.v))
