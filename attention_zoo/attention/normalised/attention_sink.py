"""Attention with a learned sink for each head (gpt-oss, OpenAI 2025)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from attention_zoo.attention.normalised.off_by_one import OffByOneAttention
from attention_zoo.attention.softmax import QKV, SITES_OF_SOFTMAX
from attention_zoo.zoo import ATTENTION, AttentionCard

CHANNELS = 8  # added to a head for the sink's score; kernels want widths that are multiples of it


@ATTENTION.register(
    AttentionCard(
        name="attention_sink",
        paper="Agarwal et al. 2025 (gpt-oss), arXiv 2508.10925",
        equation="exp(s_ij) / (exp(s) + Σ_j exp(s_ij)), s learned for each head",
        reference="transformers GptOssAttention",
        deviations="s starts at 0, where gpt-oss draws it at random",
        roles=("causal", "global", "cross"),
        masks=("causal", "window", "key_mask", "segment_ids", "query_segment_ids"),
        positions=SITES_OF_SOFTMAX,
        cache="keys and values",
        weights="nonnegative",
    )
)
class AttentionSink(OffByOneAttention):
    """Softmax attention with one more term in the denominator, for attending to nothing.

        a_ij = exp(s_ij) / (exp(s) + Σ_j exp(s_ij)),   out_i = Σ_j a_ij V_j

    with a learned score s for each head. It equals softmax attention, times σ(lse_i − s).
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sinks = nn.Parameter(torch.zeros(self.heads))

    def add_sink(self, qkv: QKV) -> tuple[Tensor, Tensor, Tensor]:
        """Give the score of the head to the queries, in a channel that only the sink's key has."""
        q, k, v = super().add_sink(qkv)
        score = (self.sinks / self.scale).to(q.dtype)[:, None, None].expand(*q.shape[:3], 1)
        channel = torch.zeros_like(k[..., :1])
        channel[:, :, 0] = 1.0
        padding = (0, CHANNELS - 1)
        return (
            torch.cat([q, pad(score, padding)], dim=-1),
            torch.cat([k, pad(channel, padding)], dim=-1),
            pad(v, (0, CHANNELS)),
        )

    def naive_weights(self, head: int, scores: Tensor) -> Tensor:
        powers = torch.exp(scores - scores.max())
        return powers / (torch.exp(self.sinks[head] - scores.max()) + powers.sum())
