"""Softmax that is off by one (Miller 2023)."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_zoo.attention.softmax import QKV, SITES_OF_SOFTMAX, SoftmaxAttention
from attention_zoo.backends import BACKENDS
from attention_zoo.backends.reference import attention_weights
from attention_zoo.masks import Visibility
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="off_by_one",
        paper="Miller 2023, Attention Is Off By One (evanmiller.org)",
        equation="exp(s_ij) / (1 + Σ_j exp(s_ij))",
        reference="torch.nn.MultiheadAttention with add_zero_attn",
        roles=("causal", "global", "cross"),
        masks=("causal", "window", "key_mask", "segment_ids", "query_segment_ids"),
        positions=SITES_OF_SOFTMAX,
        cache="keys and values",
        weights="nonnegative",
    )
)
class OffByOneAttention(SoftmaxAttention):
    """Softmax attention that may attend to nothing, by a 1 in the denominator.

        a_ij = exp(s_ij) / (1 + Σ_j exp(s_ij)),   out_i = Σ_j a_ij V_j

    That is softmax over one more key, the sink: every query sees it with the score 0, and its value
    is 0. So any kernel for softmax attention serves.
    """

    def attend(self, qkv: QKV, visible: Visibility) -> Tensor:
        bias = self.bias_with_sink(qkv, visible)
        attended = BACKENDS[self.backend].attend(
            *self.add_sink(qkv),
            visible=replace(visible, sinks=1),
            bias=bias,
            scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
        )
        return attended[..., : self.head_dim]

    def weights(self, qkv: QKV, visible: Visibility) -> Tensor:
        q, k, _ = self.add_sink(qkv)
        weights = attention_weights(
            q,
            k,
            visible=replace(visible, sinks=1).dense(q.device),
            bias=self.bias_with_sink(qkv, visible),
            scale=self.scale,
        )
        return weights[..., 1:]

    def add_sink(self, qkv: QKV) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v with the sink before the keys. Channels may be added to all of them."""
        first = (0, 0, 1, 0)
        return qkv.q, pad(qkv.k, first), pad(qkv.v, first)

    def bias_with_sink(self, qkv: QKV, visible: Visibility) -> Tensor | None:
        """Return `score_bias` with a zero for the sink before the other keys."""
        bias = self.score_bias(qkv, visible)
        return None if bias is None else pad(bias, (1, 0))

    def naive_weights(self, head: int, scores: Tensor) -> Tensor:
        powers = torch.exp(scores - scores.max())
        return powers / (torch.exp(-scores.max()) + powers.sum())
