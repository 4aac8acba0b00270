"""LASER attention (Duvvuri and Dhillon 2024)."""

from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.dense.definition import (
    heads_in_full,
    scores_by_definition,
    weights_by_definition,
)
from attention_zoo.attention.precision import autocast_disabled, upcast
from attention_zoo.attention.softmax import Heads, SoftmaxAttention, visible_to
from attention_zoo.backends.reference import repeat_heads
from attention_zoo.caches import Cache
from attention_zoo.masks import Mask
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="laser",
        paper="Duvvuri and Dhillon 2024, arXiv 2411.03493",
        equation="log(softmax(QKᵀ/√c) exp(V))",
        reference="x-transformers Attention(laser=True)",
        deviations="no dropout of weights, which would make logarithms of zero; a value more than "
        "87 (in float32) below the largest of its channel, over the sequence, is lost; "
        "x-transformers bounds values by a tanh instead",
        roles=("causal", "global", "cross"),
        masks=("causal", "window", "key_mask", "segment_ids", "query_segment_ids"),
        positions=("positions", "embeddings", "heads", "width", "scores", "content"),
        cache="keys and values",
        decode_state="2·t·g·c",
    )
)
class LaserAttention(SoftmaxAttention):
    """out = log(A exp(V)), A = softmax(QKᵀ/√c): gradients do not vanish where A saturates.

    The largest value of each channel is taken off before exp, and added behind log:

        log(A exp(V)) = m + log(A exp(V − m)),   m_c = max_k V_kc
    """

    decided_options = ("dropout",)

    def __init__(self, **options: Any) -> None:
        super().__init__(dropout=0.0, **options)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """As the base's, but what `attend` gives is the logarithm already."""
        return self.project_output(self.looked_up(x, context, mask, positions, cache))

    def attend(self, heads: Heads, mask: Mask, last: int) -> Tensor:
        """log(A exp(V)). What is a relative error of the sum is an absolute one of its logarithm,
        so both are computed in float32 at least.
        """
        v = upcast(heads.v)
        # Of no influence on the result, so it needs no gradient; and padding must have none.
        largest = v.detach()
        if mask.key_mask is not None:
            lowest = torch.finfo(v.dtype).min
            largest = largest.masked_fill(~mask.key_mask[:, None, :, None], lowest)
        largest = largest.amax(dim=2, keepdim=True)
        powers = (v - largest).clamp(max=0.0).exp()
        with autocast_disabled(v):
            wide = heads._replace(q=upcast(heads.q), k=upcast(heads.k), v=powers)
            sums = super().attend(wide, mask, last)
        out = sums.clamp(min=torch.finfo(v.dtype).tiny).log() + repeat_heads(largest, self.heads)
        out = out.to(heads.v.dtype)
        if mask.key_mask is None and mask.segment_ids is None:
            return out  # Every query sees a key.
        visible = visible_to(heads, mask, last)
        assert visible is not None
        return out.masked_fill(~visible.any(dim=-1, keepdim=True), 0.0)

    def values(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        return super().values(x, context, mask=mask, positions=positions).exp()

    def finish(self, attended: Tensor, x: Tensor) -> Tensor:
        """The output of A exp(V), which is zero for a query that sees nothing only."""
        nothing = attended == 0.0
        return self.project_output(attended.masked_fill(nothing, 1.0).log())

    def naive(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        visible: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        """log(A exp(V)) as it stands. `visible` is [b q k]."""
        heads = self.heads_of(x, context, positions, None)
        k, v = heads_in_full(heads)
        bias = self.score_bias(heads, visible[:, None])
        scores = scores_by_definition(heads.q, k, bias, width=self.head_dim)
        return self.finish(weights_by_definition(scores, visible) @ v.exp(), x)
