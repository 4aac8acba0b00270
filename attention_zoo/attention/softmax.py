"""Softmax attention over projected heads: what most of the zoo varies."""

import math
from itertools import product

import torch
from torch import Tensor

from attention_zoo.attention.base import Attention, places
from attention_zoo.backends import BACKENDS, resolve
from attention_zoo.backends.reference import attention_weights
from attention_zoo.caches import Cache, KeyValueCache
from attention_zoo.errors import Unsupported, UserError
from attention_zoo.masks import Mask
from attention_zoo.zoo import Role


class SoftmaxAttention(Attention):
    """softmax(QKᵀ/√c + bias, masked) V, by a backend.

    Args:
        dropout: probability of dropping a weight in training. Above 0 the fused CPU kernel cannot
            be used; dropout on residuals and in the feed-forward regularises at less cost.
        backend: `sdpa`, `reference`, or `auto`, which is decided at construction.
    """

    def __init__(
        self,
        *,
        dim: int,
        role: Role,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
        dropout: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            dim=dim, role=role, heads=heads, kv_heads=kv_heads, head_dim=head_dim, bias=bias
        )
        if not 0.0 <= dropout < 1.0:
            raise UserError(f"dropout must be at least 0 and below 1, got {dropout}.")
        self.dropout = dropout
        self.scale = self.head_dim**-0.5
        self.backend = resolve(backend)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        assert cache is None or isinstance(cache, KeyValueCache)
        mask = self.honoured(mask, x, context, cache)
        q, k, v, q_positions, k_positions = self.heads_of(x, context, positions, cache)
        last = k.shape[2] if cache is None or self.role == "cross" else cache.length
        return self.project_output(self.attend(q, k, v, mask, last, q_positions, k_positions))

    def attention_map(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        mask = self.honoured(mask, x, context)
        q, k, _, q_positions, k_positions = self.heads_of(x, context, positions, None)
        queries, keys = q.shape[2], k.shape[2]
        return self.weights(
            q,
            k,
            mask.visible(range(keys - queries, keys), range(keys), device=q.device),
            self.position.bias(q_positions, k_positions),
        )

    def naive(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        visible: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        """The equation, written out for one query of one head at a time. `visible` is [b q k].

        To read, and for the tests to hold `forward` against.
        """
        q, k, v, q_positions, k_positions = self.heads_of(x, context, positions, None)
        bias = self.position.bias(q_positions, k_positions)
        out = torch.zeros_like(q)
        for b, h, i in product(*map(range, q.shape[:3])):
            seen = visible[b, i].nonzero()[:, 0]
            if len(seen) == 0:
                continue
            group = h * self.kv_heads // self.heads
            scores = self.naive_scores(h, q[b, h, i], k[b, group, seen])
            if bias is not None:
                scores = scores + bias[b % bias.shape[0], h, i, seen]
            powers = torch.exp(scores - scores.max())
            out[b, h, i] = (powers / powers.sum()) @ v[b, group, seen]
        return self.project_output(out)

    def naive_scores(self, head: int, query: Tensor, keys: Tensor) -> Tensor:
        """Of one query [c] and its keys [k c]: [k]."""
        return (query * keys).sum(-1) / math.sqrt(self.head_dim)

    def new_cache(self) -> Cache:
        if self.role == "global":
            raise Unsupported(
                "global attention sees the future: it cannot be decoded with a cache."
            )
        return KeyValueCache()

    def heads_of(
        self,
        x: Tensor,
        context: Tensor | None,
        positions: Tensor | None,
        cache: KeyValueCache | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """q [b h q c], k and v [b g k c], those of the cache included, and their positions."""
        q = self.project_query(x)
        if context is not None:
            if cache is None or cache.keys is None:
                k, v = self.project_key_value(context)
                k_positions = places(context, None, None)
                if cache is not None:
                    cache.append(k, v, k_positions)
            else:
                assert cache.values is not None and cache.positions is not None
                k, v, k_positions = cache.keys, cache.values, cache.positions
            return q, k, v, places(x, positions, None), k_positions
        q_positions = places(x, positions, cache)
        k, v = self.project_key_value(x)
        q, k = self.position.rotate(q, k, q_positions)
        if cache is None:
            return q, k, v, q_positions, q_positions
        k, v, k_positions = cache.append(k, v, q_positions)
        return q, k, v, q_positions, k_positions

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Mask,
        last: int,
        q_positions: Tensor,
        k_positions: Tensor,
    ) -> Tensor:
        """[b h q c]. The keys, and the queries, are the last ones of `last` tokens."""
        queries, keys = q.shape[2], k.shape[2]
        # A plain triangle is left to the kernel, which then skips the half that is not visible.
        triangle = mask.names == ("causal",) and queries == keys
        rows, columns = range(last - queries, last), range(last - keys, last)
        return BACKENDS[self.backend](
            q,
            k,
            v,
            visible=None if triangle else mask.visible(rows, columns, device=q.device),
            causal=triangle,
            bias=self.position.bias(q_positions, k_positions),
            scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
        )

    def weights(self, q: Tensor, k: Tensor, visible: Tensor | None, bias: Tensor | None) -> Tensor:
        """[b h q k]."""
        return attention_weights(q, k, visible=visible, bias=bias, scale=self.scale)
