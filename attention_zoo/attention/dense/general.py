"""Attention by a bilinear form (Luong et al. 2015)."""

from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.attention import naive
from attention_zoo.attention.softmax import QKV, SoftmaxAttention, register_softmax
from attention_zoo.caches import TokenCache


@register_softmax(
    name="general",
    also_called=("luong", "bilinear"),
    paper="Luong et al. 2015, arXiv 1508.04025, §3.1",
    equation="softmax(x W_i yᵀ) V_i",
    reference="closed form",
    deviations="several heads, and projected values and outputs, as in multi-head attention, "
    "in place of the states themselves and a tanh layer",
    positions=("positions", "embeddings", "heads", "width", "length", "scores", "content"),
    cache="the tokens themselves, which are the keys of all heads, and values",
)
class GeneralAttention(SoftmaxAttention):
    """A head scores the pair of tokens x, y by a matrix W [d d] of its own: s = x W yᵀ, unscaled.

    Multi-head attention does so too, with W = W_Q W_Kᵀ of rank c at most. Here W has full rank, and
    keys are not projected: all heads share them, and an encoding rotates all d channels. A head
    costs as much as d/c heads there.
    """

    decided_options = ("kv_heads",)

    def __init__(self, **options: Any) -> None:
        super().__init__(kv_heads=None, **options)
        self.scale = 1.0

    def create_projections(self, bias: bool) -> None:
        super().create_projections(bias)
        self.query = nn.Linear(self.dim, self.heads * self.dim, bias=bias)
        # So that scores start with about the variance that scaled dot products have.
        nn.init.normal_(self.query.weight, std=1.0 / self.dim)
        del self.key

    @property
    def position_dim(self) -> int:
        return self.dim

    def project_key_value(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs as keys [b 1 k d], and project values [b h k c]."""
        v = self.value(source).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        return source[:, None], v

    def project_qkv(
        self, x: Tensor, context: Tensor | None, positions: Tensor, cache: TokenCache | None
    ) -> QKV:
        """Give the cached keys to every head."""
        qkv = super().project_qkv(x, context, positions, cache)
        return qkv._replace(k=qkv.k.expand(-1, self.heads, -1, -1))

    def decode_state(self, tokens: int) -> int:
        return self.cached_tokens(tokens) * (self.dim + self.heads * self.head_dim)

    def naive_qkv(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (
            naive.linear_heads(self.query, x, self.heads),
            torch.stack([source] * self.heads, dim=1),
            naive.linear_heads(self.value, source, self.heads),
        )

    def naive_scores(self, head: int, query: Tensor, keys: Tensor) -> Tensor:
        return keys @ query
