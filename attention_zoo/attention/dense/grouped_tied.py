"""Grouped-tied attention, GTA (Zadouri et al. 2025)."""

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from attention_zoo.attention import naive
from attention_zoo.attention.softmax import QKV, SoftmaxAttention, register_softmax
from attention_zoo.errors import UserError, check_positive
from attention_zoo.masks import Visibility


@register_softmax(
    name="grouped_tied",
    also_called=("gta",),
    paper="Zadouri et al. 2025, arXiv 2505.21487, §3.3.1",
    equation="softmax(Q_i K_jᵀ/√c) V_j, V = x W_KV, K = [V[: c − r]; x W_R], j = ⌊i·g/h⌋",
    reference="closed form",
    deviations="an encoding that does not rotate leaves x W_R as a part of the keys that the heads "
    "share; so does cross-attention, whose sides share no positions",
    positions=("positions", "embeddings", "heads", "scores"),
    cache="tied keys and values of g heads, and one rotary key for all heads",
)
class GroupedTiedAttention(SoftmaxAttention):
    """Keys are the first channels of the values, and a rotary part that all heads share.

    So the cache holds little more than the values of grouped-query attention. What is tied is never
    rotated. An encoding that multiplies rotated scores by a factor, as YaRN does, multiplies all of
    a score by it.

    Args:
        kv_heads: number g of tied heads, each shared by h / g query heads.
        rope_dim: width r of the rotary part; default: c/2, as in the paper.
    """

    kv_modules = ("key_value", "shared_key")

    def __init__(self, *, kv_heads: int, rope_dim: int | None = None, **options: Any) -> None:
        check_positive(kv_heads=kv_heads)
        super().__init__(kv_heads=kv_heads, **options)
        rope_dim = self.head_dim // 2 if rope_dim is None else rope_dim
        if not 0 < rope_dim < self.head_dim:
            raise UserError(
                "rope_dim must be at least 1 and leave some of a head's channels to the tied part, "
                f"got rope_dim={rope_dim} of {self.head_dim}."
            )
        self.rope_dim = rope_dim
        self.shared_key = nn.Linear(self.dim, rope_dim, bias=self.output.bias is not None)

    def create_projections(self, bias: bool) -> None:
        self.query = nn.Linear(self.dim, self.heads * self.head_dim, bias=bias)
        self.key_value = nn.Linear(self.dim, self.kv_heads * self.head_dim, bias=bias)
        self.output = nn.Linear(self.heads * self.head_dim, self.dim, bias=bias)

    @property
    def position_dim(self) -> int:
        return self.rope_dim

    def decode_state(self, tokens: int) -> int:
        numbers = self.kv_heads * self.head_dim + self.rope_dim
        return self.cached_tokens(tokens) * numbers

    def project_key_value(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Project [b k d] to what is cached: a shared key [b 1 k r], and values [b g k c]."""
        values = rearrange(self.key_value(source), "b k (g c) -> b g k c", g=self.kv_heads)
        return self.shared_key(source)[:, None], values

    def apply_position(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        plain, rotary = q.split([self.head_dim - self.rope_dim, self.rope_dim], dim=-1)
        rotary, k = self.position.rotate(rotary, k, positions)
        return torch.cat([plain * self.position.magnitude**2, rotary], dim=-1), k

    def kernel_inputs(self, qkv: QKV, visible: Visibility) -> tuple[QKV, Visibility, Tensor | None]:
        tied = qkv.v[..., : self.head_dim - self.rope_dim]
        keys = torch.cat([tied, qkv.k.expand(-1, self.kv_heads, -1, -1)], dim=-1)
        return super().kernel_inputs(qkv._replace(k=keys), visible)

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Score the tied and the rotary part apart."""
        q = naive.linear_heads(self.query, x, self.heads)
        values = naive.linear_heads(self.key_value, source, self.kv_heads)
        values = naive.repeat_groups(values, self.heads)
        tied = self.head_dim - self.rope_dim
        shared = naive.linear(self.shared_key, source)[:, None].expand(-1, self.heads, -1, -1)
        scores = torch.einsum("b h q c, b h k c -> b h q k", q[..., :tied], values[..., :tied])
        scores = scores / math.sqrt(self.head_dim) * self.position.naive_magnitude() ** 2
        rotary = q[..., tied:]
        scores = scores + self.naive_score_matrix(rotary, shared, source, visible, positions)
        return self.naive_output(naive.softmax(scores, visible) @ values, x)
