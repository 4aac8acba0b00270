"""LASER attention (Duvvuri and Dhillon 2024)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention import naive
from attention_zoo.attention.softmax import QKV, SoftmaxAttention, register_softmax
from attention_zoo.masks import Visibility
from attention_zoo.precision import autocast_disabled, upcast
from attention_zoo.tensor_checks import is_transformed

# The width of a band of values.
BAND = 32.0
# Smaller sums of a band are left out, so that gradients, e¹⁶ divided by a sum, fit into float32.
SMALLEST_SUM = 1e-24


@register_softmax(
    name="laser",
    paper="Duvvuri and Dhillon 2024, arXiv 2411.03493",
    equation="log(softmax(QKᵀ/√c) exp(V))",
    reference="x-transformers Attention(laser=True)",
    deviations="no dropout of weights, which would make logarithms of zero; values are summed by "
    "bands of their size, where the paper subtracts the largest of the sequence, which would show "
    "the future; a compiled graph, and torch.func, bound values to ±80; x-transformers bounds them "
    "by a tanh",
    positions=("positions", "embeddings", "heads", "width", "scores", "content"),
)
class LaserAttention(SoftmaxAttention):
    """log(A exp(V)) with A = softmax(QKᵀ/√c): gradients do not vanish where A saturates.

    Values are exponentiated by bands of a width of 32, B_r = {V: |V − 32 r| ≤ 16}, so that none is
    too large or too small for float32, whatever other values there are:

        log(A exp(V)) = log Σ_r exp(32 r + log(A exp(V − 32 r)[V ∈ B_r]))
    """

    decided_options = ("dropout",)

    def __init__(self, **options: Any) -> None:
        super().__init__(dropout=0.0, **options)

    def attend(self, qkv: QKV, visible: Visibility) -> Tensor:
        """Compute log(A exp(V)), in float32 at least.

        A relative error of the sum is an absolute one of its logarithm.
        """
        with autocast_disabled(qkv.v):
            wide = qkv._replace(q=upcast(qkv.q), k=upcast(qkv.k))
            attend = super().attend
            out = log_of_sums(upcast(qkv.v), lambda v: attend(wide._replace(v=v), visible))
        out = out.to(qkv.v.dtype)
        if visible.mask.key_mask is None and visible.mask.segment_ids is None:
            return out  # Every query sees a key.
        seen = visible.dense(out.device)
        assert seen is not None
        return out.masked_fill(~seen.any(dim=-1, keepdim=True), 0.0)

    def apply_weights(self, weights: Tensor, values: Tensor) -> Tensor:
        out = log_of_sums(upcast(values), lambda v: upcast(weights) @ v).to(values.dtype)
        return out.masked_fill(~weights.any(dim=-1, keepdim=True), 0.0)

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Compute log(A exp(V)) as it stands."""
        q, k, v = self.naive_qkv(x, source)
        scores = self.naive_score_matrix(q, k, source, visible, positions)
        sums = naive.softmax(scores, visible) @ v.exp()
        return self.naive_output(torch.log(torch.where(sums == 0.0, 1.0, sums)), x)


def log_of_sums(v: Tensor, weigh: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute log(A exp(V)) of values V; `weigh` computes A X of any X.

    It is a very low number where A is zero.
    """
    if torch.compiler.is_compiling() or is_transformed(v):
        # Values cannot be inspected.
        v = v.clamp(-2.5 * BAND, 2.5 * BAND)
        numbers, bands = torch.round(v / BAND), [-2.0, -1.0, 0.0, 1.0, 2.0]
    else:
        numbers = torch.round(v / BAND)
        bands = [0.0] if v.is_meta or not numbers.any() else numbers.unique().tolist()
    logs = []
    for band in bands:
        # Not `numbers != band`: what is no number must stay so.
        is_outside = (numbers < band) | (numbers > band)
        powers = (v - BAND * band).clamp(-BAND, BAND).exp().masked_fill(is_outside, 0.0)
        sums = weigh(powers)
        is_zero = sums < SMALLEST_SUM
        log = sums.masked_fill(is_zero, 1.0).log() + BAND * band
        logs.append(log.masked_fill(is_zero, torch.finfo(log.dtype).min))
    return logs[0] if len(logs) == 1 else torch.stack(logs).logsumexp(dim=0)
