"""Softmax that is off by one (Miller 2023)."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_zoo.attention.softmax import SITES_OF_SOFTMAX, Heads, SoftmaxAttention, seen_by
from attention_zoo.backends.reference import attention_weights
from attention_zoo.masks import Mask
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
        decode_state="2·t·g·c",
        weights="nonnegative",
    )
)
class OffByOneAttention(SoftmaxAttention):
    """Softmax attention that may attend to nothing, by a 1 in the denominator:

        a_ij = exp(s_ij) / (1 + Σ_j exp(s_ij)),   out_i = Σ_j a_ij V_j

    That is softmax over one key more, the sink: every query sees it, with the score 0, and its
    value is 0. So any kernel for softmax attention serves.
    """

    def attend(self, heads: Heads, mask: Mask, last: int) -> Tensor:
        visible = seen_by(heads, mask, last)
        bias = beside_sink(self.rendered_bias(heads, visible), 0.0)
        out = self.computed(*self.with_sink(heads), replace(visible, sinks=1), bias)
        return out[..., : self.head_dim]

    def weights(self, heads: Heads, visible: Tensor | None) -> Tensor:
        q, k, _ = self.with_sink(heads)
        return attention_weights(
            q,
            k,
            visible=beside_sink(visible, True),
            bias=beside_sink(self.score_bias(heads, visible), 0.0),
            scale=self.scale,
        )[..., 1:]

    def with_sink(self, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, the sink before the keys. Channels may be added to all of them."""
        first = (0, 0, 1, 0)
        return heads.q, pad(heads.k, first), pad(heads.v, first)

    def naive_weights(self, head: int, scores: Tensor) -> Tensor:
        powers = torch.exp(scores - scores.max())
        return powers / (torch.exp(-scores.max()) + powers.sum())


def beside_sink(part: Tensor | None, value: float) -> Tensor | None:
    """A mask or bias [… q k], with the sink's column before the others."""
    return None if part is None else pad(part, (1, 0), value=value)
