"""Attention with a learned sink for each head (gpt-oss, OpenAI 2025)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from attention_zoo.attention.normalised.off_by_one import OffByOneAttention
from attention_zoo.attention.softmax import QKV, register_softmax
from attention_zoo.masks import Visibility


@register_softmax(
    name="attention_sink",
    also_called=("sink", "sinks"),
    paper="Agarwal et al. 2025 (gpt-oss), arXiv 2508.10925",
    equation="exp(s_ij) / (exp(s) + Σ_j exp(s_ij)), s learned for each head",
    reference="transformers GptOssAttention",
    deviations="s starts at 0, where gpt-oss draws it at random",
    weights="nonnegative",
)
class AttentionSink(OffByOneAttention):
    """Softmax attention with one more term in the denominator, for attending to nothing.

        a_ij = exp(s_ij) / (exp(s) + Σ_j exp(s_ij)),   out_i = Σ_j a_ij V_j

    with a learned score s for each head. It equals softmax attention, times σ(lse_i − s).
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sinks = nn.Parameter(torch.zeros(self.heads))

    def sink_scores(self, q: Tensor) -> Tensor:
        return self.sinks.to(q.dtype)

    def kernel_inputs(self, qkv: QKV, visible: Visibility) -> tuple[QKV, Visibility, Tensor | None]:
        """Give the score of the head to the queries, in a channel that only the sink's key has."""
        qkv, visible, bias = super().kernel_inputs(qkv, visible)
        score = (self.sinks / self.scale).to(qkv.q.dtype)[:, None, None]
        channel = torch.zeros_like(qkv.k[..., :1])
        channel[:, :, 0] = 1.0
        # Kernels want widths that are multiples of 8.
        q = torch.cat([qkv.q, pad(score.expand(*qkv.q.shape[:3], 1), (0, 7))], dim=-1)
        k = torch.cat([qkv.k, pad(channel, (0, 7))], dim=-1)
        return qkv._replace(q=q, k=k, v=pad(qkv.v, (0, 8))), visible, bias

    def attend(self, qkv: QKV, visible: Visibility) -> Tensor:
        return super().attend(qkv, visible)[..., : self.head_dim]

    def naive_weights(self, head: int, scores: Tensor) -> Tensor:
        powers = torch.exp(scores - scores.max())
        return powers / (torch.exp(self.sinks[head] - scores.max()) + powers.sum())
