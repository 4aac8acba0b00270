"""Scalable softmax (Nakanishi 2025)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.attention.softmax import QKV, SoftmaxAttention, register_softmax
from attention_zoo.masks import Visibility


@register_softmax(
    name="scalable_softmax",
    also_called=("ssmax",),
    paper="Nakanishi 2025, arXiv 2501.19399",
    equation="softmax(s_h log n · QKᵀ/√c) V, n keys visible to the query",
    reference="closed form",
)
class ScalableSoftmaxAttention(SoftmaxAttention):
    """Softmax that does not flatten as the number of keys grows.

        a_ij = n_i^(s z_ij) / Σ_j n_i^(s z_ij) = softmax_j(s log n_i · z_ij)

    for scores z (with the bias of an encoding) and n_i keys that the query sees; s is learned for
    each head. It starts at 1 / log 10, which weighs ten keys as softmax does.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sharpness = nn.Parameter(torch.full((self.heads,), 1 / math.log(10)))

    def kernel_inputs(self, qkv: QKV, visible: Visibility) -> tuple[QKV, Visibility, Tensor | None]:
        """Multiply the queries and the bias by s log n, so that any kernel for softmax serves."""
        qkv, visible, bias = super().kernel_inputs(qkv, visible)
        count = self.count_keys(qkv, visible)
        # In half precision neighbouring counts would be one.
        wide = torch.promote_types(self.sharpness.dtype, torch.float32)
        factor = self.sharpness[:, None, None] * count.to(wide).log()
        qkv = qkv._replace(q=qkv.q * factor.to(qkv.q.dtype))
        return qkv, visible, None if bias is None else bias * factor

    def count_keys(self, qkv: QKV, visible: Visibility) -> Tensor:
        """Return how many keys each query sees, at least 1, as a number, [q 1] or [b|1 1 q 1]."""
        keys, device = qkv.k.shape[2], qkv.q.device
        if visible.is_causal_square:
            return torch.arange(1, keys + 1, device=device)[:, None]
        seen = visible.dense(device)
        if seen is None:
            return torch.full((), keys, device=device)
        return seen.sum(dim=-1, keepdim=True).clamp(min=1)

    def naive_weights(self, head: int, scores: Tensor) -> Tensor:
        powers = len(scores) ** (self.sharpness[head] * (scores - scores.max()))
        return powers / powers.sum()
