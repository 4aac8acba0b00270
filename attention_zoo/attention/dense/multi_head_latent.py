"""Multi-head latent attention (DeepSeek-AI 2024)."""

import math
from itertools import product
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from attention_zoo.attention.dense.norms import RMSNorm
from attention_zoo.attention.softmax import Heads, SoftmaxAttention
from attention_zoo.errors import UserError
from attention_zoo.masks import Mask
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="multi_head_latent",
        paper="DeepSeek-AI 2024, arXiv 2405.04434, §2.1",
        equation="softmax([Q; Q_R][K; K_R]ᵀ/√(c + r)) V, K = L W_K, V = L W_V, L = norm(x W_L)",
        reference="transformers DeepseekV3Attention",
        deviations="cross-attention, whose sides share no positions, has no rotary part; an "
        "encoding that does not rotate leaves it as a part of the keys that the heads share",
        roles=("causal", "global", "cross"),
        masks=("causal", "window", "key_mask", "segment_ids", "query_segment_ids"),
        positions=("positions", "embeddings", "heads", "scores"),
        cache="latents, and one rotary key for all heads",
        decode_state="t·(l + r)",
    )
)
class MultiHeadLatentAttention(SoftmaxAttention):
    """Keys and values of all heads are projected up from one small latent, which is what is kept.

    A rotation would come between the latent and its projection, so positions turn a part of their
    own: r channels of each query, and one key of r channels for all heads.

    A few queries on many keys, as in decoding, need neither keys nor values: their projections are
    absorbed by the queries and by what is attended to, q·(W_K l) = (W_Kᵀ q)·l.

    Args:
        latent_dim: width l of the latent; 4·c, as in the paper, if not given.
        query_latent_dim: width of a latent for the queries, which saves memory in training; none,
            if not given.
        rope_dim: width r of the rotary part, which cross-attention does not have; c/2, as in the
            paper, if not given.
    """

    decided_options = ("kv_heads",)

    def __init__(
        self,
        *,
        latent_dim: int | None = None,
        query_latent_dim: int | None = None,
        rope_dim: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(kv_heads=None, **options)
        latent_dim = 4 * self.head_dim if latent_dim is None else latent_dim
        rope_dim = self.head_dim // 2 if rope_dim is None else rope_dim
        widths = {
            "latent_dim": latent_dim,
            "query_latent_dim": query_latent_dim,
            "rope_dim": rope_dim,
        }
        for name, width in widths.items():
            if width is not None and width < 1:
                raise UserError(f"{name} must be at least 1, got {width}.")
        self.latent_dim = latent_dim
        self.rope_dim = 0 if self.role == "cross" else rope_dim
        self.scale = (self.head_dim + self.rope_dim) ** -0.5

        bias = self.output.bias is not None
        self.latent = self.to_latent(latent_dim, bias=bias)
        self.query_latent: nn.Module = nn.Identity()
        source = self.dim
        if query_latent_dim is not None:
            self.query_latent = self.to_latent(query_latent_dim, bias=bias)
            source = query_latent_dim
        query_dim = self.heads * (self.head_dim + self.rope_dim)
        self.query = nn.Linear(source, query_dim, bias=bias)
        if self.rope_dim:
            self.shared_key = nn.Linear(self.dim, self.rope_dim, bias=bias)
        # Without a bias, so that they can be absorbed.
        self.key = nn.Linear(latent_dim, self.heads * self.head_dim, bias=False)
        self.value = nn.Linear(latent_dim, self.heads * self.head_dim, bias=False)

    @property
    def position_dim(self) -> int:
        return super().position_dim if self.role == "cross" else self.rope_dim

    @property
    def sizes(self) -> dict[str, int]:
        return super().sizes | {"l": self.latent_dim, "r": self.rope_dim}

    def to_latent(self, width: int, *, bias: bool) -> nn.Module:
        return nn.Sequential(nn.Linear(self.dim, width, bias=bias), RMSNorm(width))

    def project_query(self, x: Tensor) -> Tensor:
        """[b q d] -> [b h q c+r]."""
        return super().project_query(self.query_latent(x))

    def project_key_value(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """[b k d] -> the shared key [b 1 k r] and the latent [b 1 k l], which are kept."""
        latent = self.latent(source)[:, None]
        shared = self.shared_key(source)[:, None] if self.rope_dim else latent[..., :0]
        return shared, latent

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        plain, turned = q.split([self.head_dim, self.rope_dim], dim=-1)
        turned, k = self.position.rotate(turned, k, positions)
        return torch.cat([plain, turned], dim=-1), k

    def values(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        return self.up(self.value, self.latent(x if context is None else context))

    def attend(self, heads: Heads, mask: Mask, last: int) -> Tensor:
        if not self.absorbs(heads.q.shape[2], heads.k.shape[2]):
            return super().attend(self.expanded(heads), mask, last)
        plain, turned = heads.q.split([self.head_dim, heads.q.shape[3] - self.head_dim], dim=-1)
        one = heads._replace(
            q=torch.cat([plain @ self.per_head(self.key), turned], dim=-1),
            k=torch.cat([heads.v, heads.k], dim=-1),
        )
        return super().attend(one, mask, last) @ self.per_head(self.value).transpose(-2, -1)

    def weights(self, heads: Heads, visible: Tensor | None) -> Tensor:
        return super().weights(self.expanded(heads), visible)

    def absorbs(self, queries: int, keys: int) -> bool:
        """Whether it takes fewer multiplications to attend to latents than to make keys of them."""
        wide, narrow = self.latent_dim, self.head_dim
        making = keys * wide * narrow + queries * keys * narrow
        absorbing = queries * wide * narrow + queries * keys * wide
        return absorbing < making

    def expanded(self, heads: Heads) -> Heads:
        """With the keys [b h k c+r] and values [b h k c] of every head."""
        latent = heads.v[:, 0]
        shared = heads.k.expand(-1, self.heads, -1, -1)
        k = torch.cat([self.up(self.key, latent), shared], dim=-1)
        return heads._replace(k=k, v=self.up(self.value, latent))

    def up(self, projection: nn.Module, latent: Tensor) -> Tensor:
        """[b k l] -> [b h k c]."""
        return rearrange(projection(latent), "b k (h c) -> b h k c", h=self.heads)

    def per_head(self, projection: nn.Linear) -> Tensor:
        """The matrix of an up-projection, [h c l]."""
        return projection.weight.unflatten(0, (self.heads, self.head_dim))

    def naive(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        visible: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        """The paper's equations, one query of one head at a time. `visible` is [b q k]."""
        heads = self.heads_of(x, context, positions, None)
        latent, shared = heads.v[:, 0], heads.k[:, 0]
        bias = self.score_bias(heads, visible[:, None])
        out = heads.q.new_zeros(*heads.q.shape[:3], self.head_dim)
        for b, h, i in product(*map(range, out.shape[:3])):
            seen = visible[b, i].nonzero()[:, 0]
            if len(seen) == 0:
                continue
            own = slice(h * self.head_dim, (h + 1) * self.head_dim)
            keys = latent[b, seen] @ self.key.weight[own].T
            keys = torch.cat([keys, shared[b, seen]], dim=-1)
            scores = keys @ heads.q[b, h, i] / math.sqrt(self.head_dim + self.rope_dim)
            if bias is not None:
                scores = scores + bias[b % bias.shape[0], h, i, seen]
            values = latent[b, seen] @ self.value.weight[own].T
            out[b, h, i] = self.naive_weights(h, scores) @ values
        return self.finish(out, x)
