"""Relatives of softmax attention: other scores, or another way from scores to weights."""

from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.softmax import Heads, SoftmaxAttention, visible_to
from attention_zoo.backends.reference import masked_softmax, repeat_heads
from attention_zoo.masks import Mask


class ExplicitScoresAttention(SoftmaxAttention):
    """normalise(scores(Q, K) + bias, masked) V.

    The scores themselves are needed, [b h q k], so that no fused kernel can serve.
    """

    decided_options = ("backend",)

    def __init__(self, **options: Any) -> None:
        super().__init__(backend="reference", **options)

    def attend(self, heads: Heads, mask: Mask, last: int) -> Tensor:
        weights = self.weights(heads, visible_to(heads, mask, last))
        weights = torch.dropout(weights, self.dropout, train=self.training)
        return self.weighted(weights, heads)

    def weights(self, heads: Heads, visible: Tensor | None) -> Tensor:
        scores, bias = self.scores(heads.q, heads.k), self.score_bias(heads, visible)
        return self.normalise(scores if bias is None else scores + bias, visible)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Of queries [b h q c] and keys [b g k c]: [b h q k]."""
        return q @ repeat_heads(k, self.heads).transpose(-2, -1) * self.scale

    def normalise(self, scores: Tensor, visible: Tensor | None) -> Tensor:
        """Weights [b h q k], zero where nothing is visible [b|1 1 q k]."""
        return masked_softmax(scores, visible)
