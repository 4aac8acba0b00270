"""Scalable softmax (Nakanishi 2025)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.attention.softmax import SITES_OF_SOFTMAX, Heads, SoftmaxAttention, seen_by
from attention_zoo.backends.reference import attention_weights
from attention_zoo.masks import Mask
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="scalable_softmax",
        paper="Nakanishi 2025, arXiv 2501.19399",
        equation="softmax(s_h log n · QKᵀ/√c) V, n keys visible to the query",
        reference="closed form",
        roles=("causal", "global", "cross"),
        masks=("causal", "window", "key_mask", "segment_ids", "query_segment_ids"),
        positions=SITES_OF_SOFTMAX,
        cache="keys and values",
        decode_state="2·t·g·c",
    )
)
class ScalableSoftmaxAttention(SoftmaxAttention):
    """Softmax that does not flatten as keys become more:

        a_ij = n_i^(s z_ij) / Σ_j n_i^(s z_ij) = softmax_j(s log n_i · z_ij)

    for scores z (with the bias of an encoding) and n_i keys that the query sees; s is learned for
    each head. It starts at 1 / log 10, with which ten keys are weighed as softmax weighs them.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sharpness = nn.Parameter(torch.full((self.heads,), 1 / math.log(10)))

    def attend(self, heads: Heads, mask: Mask, last: int) -> Tensor:
        visible = seen_by(heads, mask, last)
        q, bias = self.sharpened(heads, visible.dense(heads.q.device))
        return self.computed(q, heads.k, heads.v, visible, bias)

    def weights(self, heads: Heads, visible: Tensor | None) -> Tensor:
        q, bias = self.sharpened(heads, visible)
        return attention_weights(q, heads.k, visible=visible, bias=bias, scale=self.scale)

    def sharpened(self, heads: Heads, visible: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The queries, and the bias, times s log n: with them any kernel for softmax serves."""
        seen = self.sharpness.new_tensor(heads.k.shape[2])
        if visible is not None:
            seen = visible.sum(dim=-1, keepdim=True).clamp(min=1)
        growth = self.sharpness[:, None, None] * seen.log()
        bias = self.score_bias(heads, visible)
        return heads.q * growth.to(heads.q.dtype), None if bias is None else bias * growth

    def naive_weights(self, head: int, scores: Tensor) -> Tensor:
        powers = len(scores) ** (self.sharpness[head] * (scores - scores.max()))
        return powers / powers.sum()
