"""Softmax attention over projected heads: what most of the zoo varies."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product, starmap
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_zoo.attention import naive
from attention_zoo.attention.base import Attention
from attention_zoo.attention.inputs import resolve_positions
from attention_zoo.attention.qkv import QKV as QKV
from attention_zoo.attention.qkv import unpack_tokens, window_spans
from attention_zoo.attention.sharing import SharedKV, cannot_share, check_same_kv
from attention_zoo.backends import BACKENDS, resolve
from attention_zoo.backends.reference import attention_weights, masked_softmax, repeat_heads
from attention_zoo.caches import Cache, TokenCache
from attention_zoo.errors import Unsupported, check_dropout, check_positive
from attention_zoo.masks import Mask, Visibility
from attention_zoo.position.base import NaiveScoreInputs, ScoreInputs
from attention_zoo.zoo import ATTENTION, ROLES, SITES, T


def register_softmax(**fields: Any) -> Callable[[type[T]], type[T]]:
    """Register a relative of softmax attention by the fields of its card.

    A field that is left out is as most relatives declare it.
    """
    masks = ("causal", "window", "key_mask", "segment_ids")
    roles = fields.get("roles", ROLES)
    defaults = {
        "roles": roles,
        "masks": (*masks, "query_segment_ids") if "cross" in roles else masks,
        "positions": tuple(SITES),
        "cache": "keys and values",
    }
    return ATTENTION.register(**defaults | fields)


class SoftmaxAttention(Attention):
    """softmax(QKᵀ/√c + bias, masked) V, computed by a backend.

    A variant overrides some hooks: `project_query` and `project_key_value`, `apply_position`,
    `score_bias`, `kernel_inputs`, `weights` (for explicit scores: `scores` and `normalise`),
    `attend`, `project_output`, and `extra_features` for the cache.

    Args:
        dropout: probability of dropping a weight in training. Above 0 the fused CPU kernel cannot
            be used; dropout on residuals and in the feed-forward regularises at less cost.
        backend: one of `backends`, or `auto`, the first of them, which is decided at construction.
        window: number of keys that a query of self-attention sees, itself included, as in a mask;
            default: all. Work and memory grow with length × window, and the cache keeps the tokens
            of a window.
    """

    backends: ClassVar[tuple[str, ...]] = ("sdpa", "reference", "flex")
    # What projects keys and values, and what else is kept of every token; none if layers cannot
    # share it.
    kv_modules: tuple[str, ...] = ("key", "value")

    def __init__(
        self,
        *,
        dropout: float = 0.0,
        backend: str = "auto",
        window: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_dropout(dropout)
        if window is not None:
            check_positive(window=window)
            if self.role == "cross":
                raise Unsupported(
                    "cross-attention has no window, as queries and keys share no positions, got "
                    f"window={window}. Leave it out, or choose another attention for this role."
                )
            self.window = window
        self.dropout = dropout
        self.scale = self.head_dim**-0.5
        self.backend = resolve(backend, self.backends)
        if dropout and self.backend in BACKENDS and not BACKENDS[self.backend].dropout:
            raise Unsupported(
                f"backend={self.backend} cannot drop weights, got dropout={dropout}. "
                "Set dropout=0.0, or choose another backend."
            )

    def attend_tokens(
        self, x: Tensor, context: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None
    ) -> Tensor:
        alone = SharedKV(0 if cache is None else cache.length)
        return self.attend_shared(x, context, mask, positions, cache, alone)

    def attend_shared(
        self,
        x: Tensor,
        context: Tensor | None,
        mask: Mask,
        positions: Tensor,
        cache: Cache | None,
        shared: SharedKV,
    ) -> Tensor:
        assert cache is None or isinstance(cache, TokenCache)
        if self.reads_kv:
            qkv = self.read_qkv(x, positions, shared)
        else:
            qkv = shared.qkv = self.project_qkv(x, context, positions, cache)
        queries, keys = qkv.q.shape[2], qkv.k.shape[2]
        length = keys if context is not None else shared.length + x.shape[1]
        visible = Visibility.of_last(mask, queries, keys, length)
        acts_on_values = "values" in self.position.card.acts
        attend = self.attend_explicitly if acts_on_values else self.attend
        attended = list(starmap(attend, self.spans(qkv, visible)))
        return attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)

    def read_qkv(self, x: Tensor, positions: Tensor, shared: SharedKV | None) -> QKV:
        """Project x to queries of the keys and values that another layer projected."""
        assert shared is not None and shared.qkv is not None
        q, k = self.project_query(x), shared.qkv.k
        if self.role != "cross":
            # The source rotated its keys, of which the last are those of x.
            q, _ = self.apply_position(q, k[:, :, k.shape[2] - x.shape[1] :], positions)
        return shared.qkv._replace(q=q, q_positions=positions)

    def project_qkv(
        self, x: Tensor, context: Tensor | None, positions: Tensor, cache: TokenCache | None
    ) -> QKV:
        """Project x to queries, and x or the context to keys and values; the cache takes these in.

        In cross-attention with a cache, the context is projected the first time only.
        """
        q = self.project_query(x)
        if context is not None and cache is not None and cache.tokens:
            return unpack_tokens(q, positions, cache.tokens)
        source = x if context is None else context
        k_positions = positions if context is None else resolve_positions(context)
        k, v = self.project_key_value(source)
        if context is None:
            q, k = self.apply_position(q, k, positions)
        features = {**self.extra_features(source), **self.position.cached_features(source)}
        tokens = {"keys": k, "values": v, **features, "positions": k_positions[..., None]}
        if cache is not None:
            tokens["positions"] = tokens["positions"].expand(len(source), -1, -1)
            tokens = cache.append(**tokens)
        return unpack_tokens(q, positions, tokens)

    def apply_position(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Let the encoding act on queries [b h t c] and keys [b g t c] of the same tokens."""
        return self.position.rotate(q, k, positions)

    def extra_features(self, source: Tensor) -> dict[str, Tensor]:
        """Return what else the cache keeps of every token [b k d], [b … k c] each."""
        return {}

    def score_bias(self, qkv: QKV, visible: Visibility) -> Tensor | None:
        """Return what is added to the scores, [b|1 h q k], or None."""
        position = self.position
        if "content" not in position.card.acts:
            return position.score_bias(qkv.q_positions, qkv.k_positions)
        return position.content_bias(
            ScoreInputs(
                qkv.q,
                repeat_heads(qkv.k, qkv.q.shape[1]),
                qkv.q_positions,
                qkv.k_positions,
                visible=visible.dense(qkv.q.device),
                scale=self.scale,
                features=qkv.features,
            )
        )

    def kernel_inputs(self, qkv: QKV, visible: Visibility) -> tuple[QKV, Visibility, Tensor | None]:
        """Return what the backend computes softmax attention of; the last is the scores' bias."""
        return qkv, visible, self.score_bias(qkv, visible)

    def attend(self, qkv: QKV, visible: Visibility) -> Tensor:
        """Compute the weighted sums of values, [b h q c], by the backend."""
        qkv, visible, bias = self.kernel_inputs(qkv, visible)
        return BACKENDS[self.backend].attend(
            qkv.q,
            qkv.k,
            qkv.v,
            visible=visible,
            bias=bias,
            scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
        )

    def attend_explicitly(self, qkv: QKV, visible: Visibility) -> Tensor:
        """Compute the same by way of the weights, which an encoding of values needs."""
        weights = self.drop_weights(self.weights(qkv, visible))
        attended = weights.to(qkv.v.dtype) @ repeat_heads(qkv.v, self.heads)
        bias = self.position.value_bias(weights, qkv.q_positions, qkv.k_positions)
        return attended if bias is None else attended + bias

    def drop_weights(self, weights: Tensor) -> Tensor:
        """Drop some of the weights in training."""
        return torch.dropout(weights, self.dropout, train=self.training)

    def weights(self, qkv: QKV, visible: Visibility) -> Tensor:
        """Compute the weights [b h q k]."""
        qkv, visible, bias = self.kernel_inputs(qkv, visible)
        seen = visible.dense(qkv.q.device)
        return attention_weights(qkv.q, qkv.k, visible=seen, bias=bias, scale=self.scale)

    def compute_map(self, x: Tensor, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        context = source if self.role == "cross" else None
        return self.map_qkv(self.project_qkv(x, context, positions, None), mask)

    def compute_shared_map(
        self, x: Tensor, mask: Mask, positions: Tensor, shared: SharedKV | None
    ) -> Tensor:
        return self.map_qkv(self.read_qkv(x, positions, shared), mask)

    def map_qkv(self, qkv: QKV, mask: Mask) -> Tensor:
        """Return the weights [b h q k] of all queries."""
        queries, keys = qkv.q.shape[2], qkv.k.shape[2]
        visible = Visibility.of_last(mask, queries, keys, keys)
        parts = self.length_spans(qkv, visible)
        maps = [pad(self.weights(*part), (0, keys - part[0].k.shape[2])) for part in parts]
        return maps[0] if len(maps) == 1 else torch.cat(maps, dim=2)

    def spans(self, qkv: QKV, visible: Visibility) -> Iterator[tuple[QKV, Visibility]]:
        """Yield all queries at once, or spans of them, each with the keys that it needs."""
        if self.window is None or "length" in self.position.card.acts:
            return self.length_spans(qkv, visible)
        return self.window_spans(qkv, visible)

    def window_spans(self, qkv: QKV, visible: Visibility) -> Iterator[tuple[QKV, Visibility]]:
        """Yield blocks of queries with the keys in their windows, or all at once.

        The latter is for a backend that skips blocks itself, but computes an encoding's bias for
        all queries and keys.
        """
        is_biased = bool({"scores", "content"} & set(self.position.card.acts))
        if BACKENDS[self.backend].sparse and not is_biased:
            yield qkv, visible
        else:
            yield from window_spans(qkv, visible)

    def length_spans(self, qkv: QKV, visible: Visibility) -> Iterator[tuple[QKV, Visibility]]:
        """Yield all heads at once, or spans of queries.

        An encoding that acts by the length rotates the keys anew as the sequence grows: it gets
        one span of queries after the other, each with the keys up to its last query.
        """
        position = self.position
        if "length" not in position.card.acts:
            yield qkv, visible
            return
        q, k, v, q_positions, k_positions, features = qkv
        assert not features, "features of keys cannot be cut to the keys of a span"
        queries, keys = q.shape[2], k.shape[2]
        for span in position.length_spans(q_positions):
            stop = keys - (queries - span.stop)
            of_span = q_positions[:, span], k_positions[:, :stop]
            rotated = position.rotate_by_length(q[:, :, span], k[:, :, :stop], *of_span)
            rows = visible.rows.select(span)
            columns = visible.columns.select(slice(0, stop))
            yield (
                QKV(*rotated, v[:, :, :stop], *of_span, {}),
                replace(visible, rows=rows, columns=columns),
            )

    def cached_tokens(self, tokens: int) -> int:
        """Return how many of so many tokens the cache keeps."""
        if self.reads_kv:
            return 0
        return tokens if self.window is None else min(tokens, self.window)

    def decode_state(self, tokens: int) -> int:
        return super().decode_state(self.cached_tokens(tokens))

    def create_cache(self) -> Cache:
        return TokenCache(self.window)

    def read_kv_of(self, source: Attention) -> None:
        own, ours = type(self), SoftmaxAttention
        if (
            not self.kv_modules
            or own.project_qkv is not ours.project_qkv
            or own.attend_tokens is not ours.attend_tokens
        ):
            raise cannot_share(self.card.name)
        check_same_kv(self, source, self.kv_modules)
        for name in self.kv_modules:
            delattr(self, name)
        self.reads_kv = True

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Compute the equation for one query of one head at a time."""
        q, k, v = self.naive_qkv(x, source)
        scores = self.naive_score_matrix(q, k, source, visible, positions)
        attended = v.new_zeros(*q.shape[:3], v.shape[3])
        for b, h, i in product(*map(range, q.shape[:3])):
            seen = visible[b, i].nonzero()[:, 0]
            if len(seen):
                weights = self.naive_weights(h, scores[b, h, i, seen])
                here, there = self.naive_positions(b, i, seen, positions)
                attended[b, h, i] = weights @ (
                    v[b, h, seen] + self.position.naive_values(here, there)
                )
        return self.naive_output(attended, x)

    def naive_score_matrices(
        self, q: Tensor, k: Tensor, source: Tensor, visible: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score queries [b h q c] and keys [b h k c]: scores and the encoding's bias, [b h q k].

        Both are zero where a query does not see a key.
        """
        scores, biases = (q.new_zeros(*q.shape[:3], k.shape[2]) for _ in range(2))
        encoding = self.position
        heads = range(q.shape[1])
        for b, i in product(range(len(q)), range(q.shape[2])):
            seen = visible[b, i].nonzero()[:, 0]
            if not len(seen):
                continue
            here, there = self.naive_positions(b, i, seen, positions)
            length = int(here) + 1
            queries = torch.stack(
                [
                    encoding.naive_rotate(q[b, h, i], here, head=h, length=length, of="query")
                    for h in heads
                ]
            )
            keys = torch.stack(
                [
                    encoding.naive_rotate(k[b, h, seen], there, head=h, length=length, of="key")
                    for h in heads
                ]
            )
            for h in heads:
                scores[b, h, i, seen] = self.naive_scores(h, queries[h], keys[h])
                inputs = NaiveScoreInputs(
                    queries[h], keys[h], here, there, h, self.scale, source[b, seen], queries, keys
                )
                biases[b, h, i, seen] = encoding.naive_bias(inputs)
        return scores, biases

    def naive_score_matrix(
        self, q: Tensor, k: Tensor, source: Tensor, visible: Tensor, positions: Tensor
    ) -> Tensor:
        """Return the sum of `naive_score_matrices`."""
        scores, biases = self.naive_score_matrices(q, k, source, visible, positions)
        return scores + biases

    def naive_positions(
        self, b: int, i: int, seen: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the positions of query i in row b, and of the keys that it sees."""
        row = positions[b % len(positions)]
        return row[i], seen if self.role == "cross" else row[seen]

    def naive_qkv(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project x to queries [b h q c], and the source to keys and values [b h k c]."""
        q = naive.linear_heads(self.query, x, self.heads)
        k, v = (
            naive.repeat_groups(naive.linear_heads(layer, source, self.kv_heads), self.heads)
            for layer in (self.key, self.value)
        )
        return q, k, v

    def naive_scores(self, head: int, query: Tensor, keys: Tensor) -> Tensor:
        """Return the scores [k] of one query [c] and the keys [k c] that it sees."""
        return (query * keys).sum(-1) / math.sqrt(self.head_dim)

    def naive_weights(self, head: int, scores: Tensor) -> Tensor:
        """Return the weights [k] for the scores [k] of one query and the keys that it sees."""
        powers = torch.exp(scores - scores.max())
        return powers / powers.sum()

    def naive_output(self, attended: Tensor, x: Tensor) -> Tensor:
        """Project weighted sums of values [b h q c] to outputs [b q d]."""
        return naive.linear_output(self.output, attended)


class ExplicitScoresAttention(SoftmaxAttention):
    """normalise(scores(Q, K) + bias, masked) V; a variant overrides `scores` or `normalise`.

    The scores [b h q k] are computed in full, so a fused kernel cannot be used.
    """

    decided_options = ("backend",)

    def __init__(self, **options: Any) -> None:
        super().__init__(backend="reference", **options)

    def attend(self, qkv: QKV, visible: Visibility) -> Tensor:
        return self.attend_explicitly(qkv, visible)

    def weights(self, qkv: QKV, visible: Visibility) -> Tensor:
        scores = self.biased_scores(qkv, visible)
        return self.normalise(scores, visible.dense(scores.device))

    def biased_scores(self, qkv: QKV, visible: Visibility) -> Tensor:
        """Return `scores` with the encoding's bias, [b h q k]."""
        scores, bias = self.scores(qkv.q, qkv.k), self.score_bias(qkv, visible)
        return scores if bias is None else scores + bias

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the scores [b h q k] of queries [b h q c] and keys [b g k c]."""
        return q @ repeat_heads(k, self.heads).transpose(-2, -1) * self.scale

    def normalise(self, scores: Tensor, visible: Tensor | None) -> Tensor:
        """Return weights [b h q k] for scores; zero where no key is visible [b|1 1 q k]."""
        return masked_softmax(scores, visible)
