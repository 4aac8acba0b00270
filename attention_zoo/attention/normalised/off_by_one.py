"""Softmax that is off by one (Miller 2023)."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_zoo.attention.softmax import QKV, SoftmaxAttention, register_softmax
from attention_zoo.backends.sdpa import attend_with_sinks
from attention_zoo.custom_gradients import allows_custom_gradients
from attention_zoo.masks import Visibility


@register_softmax(
    name="off_by_one",
    also_called=("softmax1",),
    paper="Miller 2023, Attention Is Off By One (evanmiller.org)",
    equation="exp(s_ij) / (1 + Σ_j exp(s_ij))",
    reference="torch.nn.MultiheadAttention with add_zero_attn",
    weights="nonnegative",
)
class OffByOneAttention(SoftmaxAttention):
    """Softmax attention that may attend to nothing, by a 1 in the denominator.

        a_ij = exp(s_ij) / (1 + Σ_j exp(s_ij)),   out_i = Σ_j a_ij V_j

    That is softmax over one more key, the sink: every query sees it with the score 0, and its value
    is 0. So any kernel for softmax attention serves.
    """

    def sink_scores(self, q: Tensor) -> Tensor:
        """Return the score of each head's sink, [h]."""
        return q.new_zeros(q.shape[1])

    def attend(self, qkv: QKV, visible: Visibility) -> Tensor:
        q, k, v = qkv.q, qkv.k, qkv.v
        drops = self.dropout > 0.0 and self.training
        acts_on_scores = {"scores", "content"} & {*self.position.card.acts}
        if (
            self.backend == "sdpa"
            and visible.is_causal_square
            and not drops
            and not acts_on_scores
            and q.shape == k.shape == v.shape
            and q.numel()
            and q.dtype in (torch.float32, torch.float64)
            and allows_custom_gradients(q, k, v)
        ):
            return attend_with_sinks(q, k, v, sinks=self.sink_scores(q), scale=self.scale)
        return super().attend(qkv, visible)

    def kernel_inputs(self, qkv: QKV, visible: Visibility) -> tuple[QKV, Visibility, Tensor | None]:
        """Put the sink before the keys: zeros as its key, its value and its bias."""
        qkv, visible, bias = super().kernel_inputs(qkv, visible)
        qkv = qkv._replace(k=pad(qkv.k, (0, 0, 1, 0)), v=pad(qkv.v, (0, 0, 1, 0)))
        return qkv, replace(visible, sinks=1), None if bias is None else pad(bias, (1, 0))

    def weights(self, qkv: QKV, visible: Visibility) -> Tensor:
        return super().weights(qkv, visible)[..., 1:]

    def naive_weights(self, head: int, scores: Tensor) -> Tensor:
        powers = torch.exp(scores - scores.max())
        return powers / (torch.exp(-scores.max()) + powers.sum())
