"""LASER attention (Duvvuri and Dhillon 2024)."""

from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention import naive
from attention_zoo.attention.softmax import QKV, SoftmaxAttention, register_softmax
from attention_zoo.backends.reference import repeat_heads
from attention_zoo.masks import Visibility
from attention_zoo.precision import autocast_disabled, upcast


@register_softmax(
    name="laser",
    paper="Duvvuri and Dhillon 2024, arXiv 2411.03493",
    equation="log(softmax(QKᵀ/√c) exp(V))",
    reference="x-transformers Attention(laser=True)",
    deviations="no dropout of weights, which would make logarithms of zero; a value more than "
    "87 (in float32) below the largest of its channel, over the sequence, is lost; "
    "x-transformers bounds values by a tanh instead",
    positions=("positions", "embeddings", "heads", "width", "scores", "content"),
)
class LaserAttention(SoftmaxAttention):
    """log(A exp(V)) with A = softmax(QKᵀ/√c): gradients do not vanish where A saturates.

    The largest value of each channel is subtracted before exp, and added after log:

        log(A exp(V)) = m + log(A exp(V − m)),   m_c = max_k V_kc
    """

    decided_options = ("dropout",)

    def __init__(self, **options: Any) -> None:
        super().__init__(dropout=0.0, **options)

    def attend(self, qkv: QKV, visible: Visibility) -> Tensor:
        """Compute log(A exp(V)), in float32 at least.

        A relative error of the sum is an absolute one of its logarithm.
        """
        v, key_mask = upcast(qkv.v), visible.mask.key_mask
        # It cancels in the result, so it needs no gradient; and padding must have no influence.
        largest = v.detach()
        if key_mask is not None:
            lowest = torch.finfo(v.dtype).min
            largest = largest.masked_fill(~key_mask[:, None, :, None], lowest)
        largest = largest.amax(dim=2, keepdim=True)
        powers = (v - largest).clamp(max=0.0).exp()
        with autocast_disabled(v):
            wide = qkv._replace(q=upcast(qkv.q), k=upcast(qkv.k), v=powers)
            sums = super().attend(wide, visible)
        out = sums.clamp(min=torch.finfo(v.dtype).tiny).log() + repeat_heads(largest, self.heads)
        out = out.to(qkv.v.dtype)
        if key_mask is None and visible.mask.segment_ids is None:
            return out  # Every query sees a key.
        seen = visible.dense(v.device)
        assert seen is not None
        return out.masked_fill(~seen.any(dim=-1, keepdim=True), 0.0)

    def apply_weights(self, weights: Tensor, values: Tensor) -> Tensor:
        sums = weights @ values.exp()
        # A sum is zero only for a query that sees nothing.
        return sums.masked_fill(sums == 0.0, 1.0).log()

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Compute log(A exp(V)) as it stands."""
        q, k, v = self.naive_qkv(x, source)
        scores = self.naive_score_matrix(q, k, source, visible, positions)
        sums = naive.softmax(scores, visible) @ v.exp()
        return self.naive_output(torch.log(torch.where(sums == 0.0, 1.0, sums)), x)
