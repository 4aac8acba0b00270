"""Softmax attention over projected heads: what most of the zoo varies."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, ClassVar, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_zoo.attention.base import Attention, resolve_positions
from attention_zoo.backends import BACKENDS, resolve
from attention_zoo.backends.reference import attention_weights, repeat_heads
from attention_zoo.caches import Cache, TokenCache
from attention_zoo.errors import Unsupported, UserError
from attention_zoo.masks import Mask, Pattern, Visibility
from attention_zoo.position.base import ScoreInputs
from attention_zoo.zoo import Site

# Where an encoding may act, on attention that keeps the heads and the way to weights as they are.
SITES_OF_SOFTMAX: tuple[Site, ...] = get_args(Site)


class Heads(NamedTuple):
    """What attention works on; keys include those of the cache."""

    q: Tensor  # [b h q c]
    k: Tensor  # [b g k c]
    v: Tensor  # [b g k c]
    q_positions: Tensor  # [b|1 q]
    k_positions: Tensor  # [b|1 k]
    # What else the mechanism has of every key, [b … k c] each, or of every query, [b … q c].
    more: dict[str, Tensor]


class SoftmaxAttention(Attention):
    """softmax(QKᵀ/√c + bias, masked) V, by a backend.

    Args:
        dropout: probability of dropping a weight in training. Above 0 the fused CPU kernel cannot
            be used; dropout on residuals and in the feed-forward regularises at less cost.
        backend: one of `backends`, or `auto`, the first of them, which is decided at construction.
    """

    # Of the mechanism's own.
    backends: ClassVar[tuple[str, ...]] = ("sdpa", "reference", "flex")

    def __init__(self, *, dropout: float = 0.0, backend: str = "auto", **options: Any) -> None:
        super().__init__(**options)
        if not 0.0 <= dropout < 1.0:
            raise UserError(f"dropout must be at least 0 and below 1, got {dropout}.")
        self.dropout = dropout
        self.scale = self.head_dim**-0.5
        self.backend = resolve(backend, self.backends)
        if dropout and self.backend in BACKENDS and not BACKENDS[self.backend].dropout:
            raise Unsupported(
                f"backend={self.backend} cannot drop weights, got dropout={dropout}. "
                "Set dropout=0.0, or choose another backend."
            )

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        return self.finish(self.looked_up(x, context, mask, positions, cache), x)

    def looked_up(
        self,
        x: Tensor,
        context: Tensor | None,
        mask: Mask,
        positions: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        """What each query gets of the values, [b h q c]."""
        assert cache is None or isinstance(cache, TokenCache)
        mask = self.effective_mask(mask, x, context, cache)
        heads = self.heads_of(x, context, positions, cache)
        last = heads.k.shape[2] if cache is None or self.role == "cross" else cache.length
        attended = [self.attended(run, mask, stop) for run, stop in self.turned(heads, last)]
        return attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)

    def attention_map(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        mask = self.effective_mask(mask, x, context)
        heads = self.heads_of(x, context, positions, None)
        keys = heads.k.shape[2]
        maps = [
            pad(self.weights(run, visible_to(run, mask, stop)), (0, keys - stop))
            for run, stop in self.turned(heads, keys)
        ]
        return maps[0] if len(maps) == 1 else torch.cat(maps, dim=2)

    def naive(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        visible: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        """The equation, written out for one query of one head at a time.

        To read, and for the tests to hold `forward` against.
        """
        heads = self.heads_of(x, context, positions, None)
        outputs, start = [], 0
        for run, stop in self.turned(heads, heads.k.shape[2]):
            q, k = run.q, run.k
            rows = visible[:, start : start + q.shape[2], :stop]
            bias = self.score_bias(run, rows[:, None])
            weights = q.new_zeros(*q.shape[:3], k.shape[2])
            for b, h, i in product(*map(range, q.shape[:3])):
                seen = rows[b, i].nonzero()[:, 0]
                if len(seen) == 0:
                    continue
                group = h * k.shape[1] // self.heads
                scores = self.naive_scores(h, q[b, h, i], k[b, group, seen])
                if bias is not None:
                    scores = scores + bias[b % bias.shape[0], h, i, seen]
                weights[b, h, i, seen] = self.naive_weights(h, scores)
            outputs.append(self.weighted(weights, run))
            start += q.shape[2]
        return self.finish(torch.cat(outputs, dim=2), x)

    def naive_scores(self, head: int, query: Tensor, keys: Tensor) -> Tensor:
        """Of one query [c] and the keys [k c] that it sees: [k]."""
        return (query * keys).sum(-1) / math.sqrt(self.head_dim)

    def naive_weights(self, head: int, scores: Tensor) -> Tensor:
        """Of one query's scores [k], those of the keys that it sees: [k]."""
        powers = torch.exp(scores - scores.max())
        return powers / powers.sum()

    def empty_cache(self) -> Cache:
        return TokenCache()

    def heads_of(
        self,
        x: Tensor,
        context: Tensor | None,
        positions: Tensor | None,
        cache: TokenCache | None,
    ) -> Heads:
        """The heads of x, and of the context or what the cache keeps; the cache takes them in."""
        q = self.project_query(x)
        cross = self.role == "cross"
        q_positions = resolve_positions(x, positions, None if cross else cache)
        if cross and cache is not None and cache.tokens:
            return with_kept(q, q_positions, cache.tokens)
        source, k_positions = x, q_positions
        if cross:
            assert context is not None
            source, k_positions = context, resolve_positions(context, None, None)
        k, v = self.project_key_value(source)
        if not cross:
            q, k = self.rotate(q, k, q_positions)
        more = {**self.extra_features(source), **self.position.cached_features(source)}
        kept = {"keys": k, "values": v, **more}
        if cache is None:
            return with_kept(q, q_positions, {**kept, "positions": k_positions[..., None]})
        k_positions = k_positions.expand(len(source), -1)[..., None]
        return with_kept(q, q_positions, cache.append(**kept, positions=k_positions))

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [b h t c] and keys [b g t c] of the same tokens, as the encoding turns them."""
        return self.position.rotate(q, k, positions)

    def extra_features(self, source: Tensor) -> dict[str, Tensor]:
        """What the mechanism keeps of every token [b k d] beside keys and values, [b … k c]."""
        return {}

    def turned(self, heads: Heads, last: int) -> Iterator[tuple[Heads, int]]:
        """The heads, and `last`, the number of tokens up to their last query.

        All at once, unless the encoding turns the keys anew as the sequence grows: then one run of
        queries after the other, each with the keys up to its last one.
        """
        position = self.position
        if "length" not in position.card.acts:
            yield heads, last
            return
        q, k, v, q_positions, k_positions, more = heads
        assert not more, "what is kept beside keys and values cannot be cut to the keys of a run"
        queries, keys = q.shape[2], k.shape[2]
        for run in position.length_spans(q_positions):
            behind = queries - run.stop
            stop = keys - behind
            token_positions = q_positions[:, run], k_positions[:, :stop]
            turned = position.rotate_by_length(q[:, :, run], k[:, :, :stop], *token_positions)
            yield Heads(*turned, v[:, :, :stop], *token_positions, {}), last - behind

    def score_bias(self, heads: Heads, visible: Tensor | None) -> Tensor | None:
        """What is added to the scores, [b|1 h q k], where a query sees a key, [b|1 1 q k]."""
        position = self.position
        if "content" not in position.card.acts:
            return position.score_bias(heads.q_positions, heads.k_positions)
        return position.content_bias(
            ScoreInputs(
                heads.q,
                repeat_heads(heads.k, heads.q.shape[1]),
                heads.q_positions,
                heads.k_positions,
                visible=visible,
                scale=self.scale,
                kept=heads.more,
            )
        )

    def attended(self, heads: Heads, mask: Mask, last: int) -> Tensor:
        """`attend`, or the same by way of the weights, where the encoding acts on values."""
        if "values" not in self.position.card.acts:
            return self.attend(heads, mask, last)
        weights = self.weights(heads, visible_to(heads, mask, last))
        return self.weighted(torch.dropout(weights, self.dropout, train=self.training), heads)

    def weighted(self, weights: Tensor, heads: Heads) -> Tensor:
        """What weights [b h q k] come to, [b h q c]."""
        out = weights @ repeat_heads(heads.v, self.heads)
        more = self.position.value_bias(weights, heads.q_positions, heads.k_positions)
        return out if more is None else out + more

    def attend(self, heads: Heads, mask: Mask, last: int) -> Tensor:
        """[b h q c]. The keys, and the queries, are the last ones of `last` tokens."""
        return self.attend_visible(heads, seen_by(heads, mask, last))

    def attend_visible(self, heads: Heads, visible: Visibility) -> Tensor:
        """[b h q c], by the backend."""
        return self.computed(*heads[:3], visible, self.rendered_bias(heads, visible))

    def rendered_bias(self, heads: Heads, visible: Visibility) -> Tensor | None:
        """`bias`; who sees whom is rendered only for an encoding that asks for it."""
        asked = "content" in self.position.card.acts
        return self.score_bias(heads, visible.dense(heads.q.device) if asked else None)

    def computed(
        self, q: Tensor, k: Tensor, v: Tensor, visible: Visibility, bias: Tensor | None
    ) -> Tensor:
        """What the backend makes of them."""
        return BACKENDS[self.backend].attend(
            q,
            k,
            v,
            visible=visible,
            bias=bias,
            scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
        )

    def weights(self, heads: Heads, visible: Tensor | None) -> Tensor:
        """[b h q k]."""
        bias = self.score_bias(heads, visible)
        return attention_weights(heads.q, heads.k, visible=visible, bias=bias, scale=self.scale)


def with_kept(q: Tensor, q_positions: Tensor, kept: dict[str, Tensor]) -> Heads:
    """Queries beside what is kept of every key."""
    more = {k: v for k, v in kept.items() if k not in ("keys", "values", "positions")}
    positions = kept["positions"][..., 0]
    return Heads(q, kept["keys"], kept["values"], q_positions, positions, more)


def seen_by(heads: Heads, mask: Mask, last: int, pattern: Pattern | None = None) -> Visibility:
    """Who sees whom, where queries and keys are the last ones of `last` tokens."""
    queries, keys = heads.q.shape[2], heads.k.shape[2]
    rows, columns = range(last - queries, last), range(last - keys, last)
    return Visibility(mask=mask, rows=rows, columns=columns, pattern=pattern)


def visible_to(heads: Heads, mask: Mask, last: int) -> Tensor | None:
    """The same, [b|1 1 q k], or None where every query sees every key."""
    return seen_by(heads, mask, last).dense(heads.q.device)
