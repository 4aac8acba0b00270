"""Multi-head latent attention (DeepSeek-AI 2024)."""

import math
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from attention_zoo.attention import naive
from attention_zoo.attention.dense.norms import RMSNorm
from attention_zoo.attention.softmax import QKV, SoftmaxAttention, register_softmax
from attention_zoo.errors import check_positive
from attention_zoo.masks import Mask, Visibility


@register_softmax(
    name="multi_head_latent",
    also_called=("mla",),
    paper="DeepSeek-AI 2024, arXiv 2405.04434, §2.1",
    equation="softmax([Q; Q_R][K; K_R]ᵀ/√(c + r)) V, K = L W_K, V = L W_V, L = norm(x W_L)",
    reference="transformers DeepseekV3Attention",
    deviations="cross-attention, whose sides share no positions, has no rotary part; an "
    "encoding that does not rotate leaves it as a part of the keys that the heads share",
    positions=("positions", "embeddings", "heads", "scores"),
    cache="latents, and one rotary key for all heads",
)
class MultiHeadLatentAttention(SoftmaxAttention):
    """Keys and values of all heads are projected from one small latent, which the cache keeps.

    A rotation would come between the latent and its projection, so positions rotate separate
    channels: r channels of each query, and one key of r channels that all heads share. An encoding
    that multiplies rotated scores by a factor, as YaRN does, multiplies all of a score by it.

    A few queries on many keys, as in decoding, need neither keys nor values: the queries and the
    weighted sums absorb their projections, q·(W_K l) = (W_Kᵀ q)·l.

    Args:
        latent_dim: width l of the latent; default: 4·c, as in the paper.
        query_latent_dim: width of a latent for the queries, which saves memory in training;
            default: no such latent.
        rope_dim: width r of the rotary part, which cross-attention does not have; default: c/2,
            as in the paper.
    """

    decided_options = ("kv_heads",)
    token_projections = ()  # Keys and values are projected from latents.
    # The default of `latent_dim`, in widths of a head.
    latent_widths: ClassVar[int] = 4

    def __init__(
        self,
        *,
        latent_dim: int | None = None,
        query_latent_dim: int | None = None,
        rope_dim: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(kv_heads=None, **options)
        latent_dim = self.latent_widths * self.head_dim if latent_dim is None else latent_dim
        rope_dim = max(self.head_dim // 2, 1) if rope_dim is None else rope_dim
        check_positive(latent_dim=latent_dim, rope_dim=rope_dim)
        self.latent_dim = latent_dim
        self.rope_dim = 0 if self.role == "cross" else rope_dim
        self.scale = (self.head_dim + self.rope_dim) ** -0.5

        bias = self.output.bias is not None
        self.latent = self.new_latent(latent_dim, bias=bias)
        self.query_latent: nn.Module = nn.Identity()
        if query_latent_dim is not None:
            check_positive(query_latent_dim=query_latent_dim)
            self.query_latent = self.new_latent(query_latent_dim, bias=bias)
        source = query_latent_dim or self.dim
        self.query = nn.Linear(source, self.heads * (self.head_dim + self.rope_dim), bias=bias)
        if self.rope_dim:
            self.shared_key = nn.Linear(self.dim, self.rope_dim, bias=bias)
        # Layers that share latents project these to keys and values of their own.
        self.kv_modules = ("latent", "shared_key") if self.rope_dim else ("latent",)
        # Without a bias, so that they can be absorbed.
        self.key = nn.Linear(latent_dim, self.heads * self.head_dim, bias=False)
        self.value = nn.Linear(latent_dim, self.heads * self.head_dim, bias=False)

    @property
    def position_dim(self) -> int:
        return super().position_dim if self.role == "cross" else self.rope_dim

    def decode_state(self, tokens: int) -> int:
        return self.cached_tokens(tokens) * (self.latent_dim + self.rope_dim)

    def new_latent(self, width: int, *, bias: bool) -> nn.Sequential:
        """Create a projection to a latent, with its norm."""
        return nn.Sequential(nn.Linear(self.dim, width, bias=bias), RMSNorm(width))

    def project_query(self, x: Tensor) -> Tensor:
        """Project [b q d] to [b h q c+r]."""
        return super().project_query(self.query_latent(x))

    def project_key_value(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Project [b k d] to what is cached: a shared key [b 1 k r] and latents [b n k l]."""
        latents = self.project_latents(source)
        shared = self.shared_key(source)[:, None] if self.rope_dim else latents[:, :1, :, :0]
        return shared, latents

    def project_latents(self, source: Tensor) -> Tensor:
        """Project [b k d] to latents [b n k l]: here one, for all heads."""
        return self.latent(source)[:, None]

    def apply_position(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        plain, rotary = q.split([self.head_dim, self.rope_dim], dim=-1)
        rotary, k = self.position.rotate(rotary, k, positions)
        return torch.cat([plain * self.position.content_magnitude**2, rotary], dim=-1), k

    def compute_values(self, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        return self.project_up(self.value, self.project_latents(source))

    def attend(self, qkv: QKV, visible: Visibility) -> Tensor:
        if not self.absorbs(qkv.q.shape[2], qkv.k.shape[2]):
            return super().attend(self.expand(qkv), visible)
        plain, rotary = qkv.q.split([self.head_dim, self.rope_dim], dim=-1)
        absorbed = qkv._replace(
            q=torch.cat([plain @ self.matrix_per_head(self.key), rotary], dim=-1),
            k=torch.cat([qkv.v, qkv.k.expand(-1, qkv.v.shape[1], -1, -1)], dim=-1),
        )
        latents = super().attend(absorbed, visible)
        return latents @ self.matrix_per_head(self.value).transpose(-2, -1)

    def weights(self, qkv: QKV, visible: Visibility) -> Tensor:
        return super().weights(self.expand(qkv), visible)

    def absorbs(self, queries: int, keys: int) -> bool:
        """Return whether attending to latents takes fewer products than computing the keys."""
        wide, narrow = self.latent_dim, self.head_dim
        expanding = keys * wide * narrow + queries * keys * narrow
        absorbing = queries * wide * narrow + queries * keys * wide
        return absorbing < expanding

    def expand(self, qkv: QKV) -> QKV:
        """Compute the keys [b h k c+r] and values [b h k c] of every head."""
        keys = self.project_up(self.key, qkv.v), qkv.k.expand(-1, self.heads, -1, -1)
        return qkv._replace(k=torch.cat(keys, dim=-1), v=self.project_up(self.value, qkv.v))

    def project_up(self, projection: nn.Linear, latents: Tensor) -> Tensor:
        """Project latents [b n k l] to heads [b h k c]."""
        return rearrange(projection(latents[:, 0]), "b k (h c) -> b h k c", h=self.heads)

    def matrix_per_head(self, projection: nn.Linear) -> Tensor:
        """Return the matrix of an up-projection, [h c l]."""
        return projection.weight.unflatten(0, (self.heads, self.head_dim))

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Compute the paper's equations, with all keys and values in full."""
        k, v = self.naive_key_value(source)
        if isinstance(self.query_latent, nn.Sequential):
            x = naive_latent(self.query_latent, x)
        q = naive.linear_heads(self.query, x, self.heads)
        content, rotary = q[..., : self.head_dim], q[..., self.head_dim :]
        scores = torch.einsum("b h q c, b h k c -> b h q k", content, k)
        scores = scores / math.sqrt(self.head_dim + self.rope_dim)
        if self.rope_dim:
            scores = scores * self.position.naive_content_magnitude() ** 2
            shared = naive.linear(self.shared_key, source)[:, None].expand(-1, self.heads, -1, -1)
            scores = scores + self.naive_score_matrix(rotary, shared, source, visible, positions)
        return self.naive_output(naive.softmax(scores, visible) @ v, x)

    def naive_key_value(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Project [b k d] to the keys, without the shared part, and the values: [b h k c] each."""
        latent = naive_latent(self.latent, source)
        keys, values = (naive.linear_heads(up, latent, self.heads) for up in (self.key, self.value))
        return keys, values

    def naive_scores(self, head: int, query: Tensor, keys: Tensor) -> Tensor:
        return keys @ query / math.sqrt(self.head_dim + self.rope_dim)


def naive_latent(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Project inputs [b t d] to normalised latents [b t l]."""
    down, norm = layers
    assert isinstance(down, nn.Linear) and isinstance(norm, RMSNorm)
    return naive.rms_norm(naive.linear(down, x), norm.weight, epsilon=1e-6)
