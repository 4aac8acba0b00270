"""Relatives of softmax attention: other scores, or another way from scores to weights."""

from typing import Any

from torch import Tensor

from attention_zoo.attention.softmax import QKV, SoftmaxAttention
from attention_zoo.backends.reference import masked_softmax, repeat_heads
from attention_zoo.masks import Visibility


class ExplicitScoresAttention(SoftmaxAttention):
    """normalise(scores(Q, K) + bias, masked) V.

    The scores [b h q k] are built in full, so no fused kernel can serve.
    """

    decided_options = ("backend",)

    def __init__(self, **options: Any) -> None:
        super().__init__(backend="reference", **options)

    def attend(self, qkv: QKV, visible: Visibility) -> Tensor:
        return self.attend_explicitly(qkv, visible)

    def weights(self, qkv: QKV, visible: Visibility) -> Tensor:
        scores, bias = self.scores(qkv.q, qkv.k), self.score_bias(qkv, visible)
        scores = scores if bias is None else scores + bias
        return self.normalise(scores, visible.dense(scores.device))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the scores [b h q k] of queries [b h q c] and keys [b g k c]."""
        return q @ repeat_heads(k, self.heads).transpose(-2, -1) * self.scale

    def normalise(self, scores: Tensor, visible: Tensor | None) -> Tensor:
        """Return weights [b h q k] for scores; zero where no key is visible [b|1 1 q k]."""
        return masked_softmax(scores, visible)
