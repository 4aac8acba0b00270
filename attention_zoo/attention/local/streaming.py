"""Attention sinks and a window, with positions within the cache (Xiao et al. 2024)."""

import math
from itertools import product
from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.local.pattern import (
    BlockSparseAttention,
    find_sequences,
    flatten_blocks,
)
from attention_zoo.attention.naive import softmax
from attention_zoo.attention.online_softmax import (
    PartialSoftmax,
    extend_blocks,
    gather_tokens,
    merge_partial_softmax,
    split_into_blocks,
)
from attention_zoo.attention.softmax import QKV, register_softmax
from attention_zoo.backends.reference import masked_softmax, repeat_heads
from attention_zoo.caches import Cache, TokenCache
from attention_zoo.errors import check_positive
from attention_zoo.masks import Mask, Visibility, gather_columns
from attention_zoo.position.base import NaiveScoreInputs


class SinkCache(TokenCache):
    """The last tokens, and the first ones of the present sequence."""

    def __init__(self, window: int) -> None:
        super().__init__(window)
        self.sinks: dict[str, Tensor] = {}

    def reorder(self, index: Tensor) -> None:
        super().reorder(index)
        self.sinks = {name: part.index_select(0, index) for name, part in self.sinks.items()}


@register_softmax(
    name="streaming",
    also_called=("streaming_llm",),
    paper="Xiao et al. 2024 (StreamingLLM), arXiv 2309.17453, §3.2",
    equation="softmax(QKᵀ/√c) V over the first S keys and the last W, at their places among these",
    reference="closed form",
    deviations="also trained so, where the paper changes the decoding of trained models; an "
    "encoding before the layers keeps the positions of the text; each packed sequence has sinks of "
    "its own; a mask's window is refused, as it would cut off the sinks",
    roles=("causal",),
    masks=("causal", "key_mask", "segment_ids"),
    positions=("positions", "embeddings", "heads", "width", "scores"),
    cache="keys and values of S + W tokens",
    cost="t",
)
class StreamingAttention(BlockSparseAttention):
    """Attention to the last W keys, and to the first S ones, the sinks.

    Sinks take in the weight that a query has no use for. Positions are the places in a cache of
    S + W tokens, from which all others were dropped: two keys of the window are as far apart as in
    the text, but no distance is larger than S + W. So a query has two positions: its own for the
    window, and min(i, S + W − 1) for the sinks outside it.

    Args:
        window: W, the number of last keys that a query sees, itself included.
        sinks: S, the number of first tokens that all see, counted from the first real one.
    """

    decided_options = ("backend",)
    backends = ("blocks",)

    def __init__(self, *, window: int, sinks: int, **options: Any) -> None:
        super().__init__(backend="blocks", **options)
        check_positive(window=window, sinks=sinks)
        # Not `self.window`, which would narrow every mask.
        self.sliding_window = window
        self.sinks = sinks

    def is_visible(self, query: Any, key: Any, length: Any) -> Any:
        return ((query - key < self.sliding_window) | (key < self.sinks)) & (query >= 0)

    def create_cache(self) -> Cache:
        return SinkCache(self.sliding_window)

    def decode_state(self, tokens: int) -> int:
        kept = min(tokens, self.sliding_window) + min(tokens, self.sinks)
        return super().decode_state(kept)

    def attend_tokens(
        self, x: Tensor, context: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None
    ) -> Tensor:
        assert cache is None or isinstance(cache, SinkCache)
        qkv = self.project_qkv(x, context, positions, cache)
        if cache is not None:
            qkv = qkv._replace(features=cache.sinks)
        keys = qkv.k.shape[2]
        length = keys if cache is None else cache.length
        attended = self.attend(qkv, Visibility.of_last(mask, x.shape[1], keys, length))
        if cache is not None:
            starts, _ = find_sequences(mask, length, x.device)
            first = torch.arange(min(self.sinks, length), device=x.device)
            cache.sinks = gather_sinks(qkv, starts, length, starts[:, -1:, None] + first)
        return attended

    def apply_position(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate keys alone: a query has two positions, of which one depends on the mask."""
        return q, self.position.rotate(q, k, positions)[1]

    def rotate_query(self, qkv: QKV, positions: Tensor) -> QKV:
        """Return the queries at other positions."""
        q, _ = self.position.rotate(qkv.q, qkv.q, positions)
        return qkv._replace(q=q, q_positions=positions)

    def positions_for_sinks(self, qkv: QKV, starts: Tensor) -> Tensor:
        """Return the positions [b|1 q] of queries, less the number of tokens that were dropped."""
        starts, stop = starts[:, starts.shape[1] - qkv.q.shape[2] :], starts.shape[1]
        columns = torch.arange(stop - qkv.q.shape[2], stop, device=starts.device)
        dropped = columns + 1 - starts - self.sinks - self.sliding_window
        return qkv.q_positions - dropped.clamp(min=0)

    def attend_by_blocks(self, qkv: QKV, visible: Visibility) -> Tensor:
        mask, rows = visible.mask, visible.rows
        starts, _ = find_sequences(mask, rows.stop, qkv.q.device)
        columns = torch.arange(rows.start, rows.stop, device=qkv.q.device)
        queries = split_into_blocks(columns, self.sliding_window)
        near_keys = extend_blocks(queries, self.sliding_window - 1, 0)
        in_window = queries[:, :, None] - near_keys[:, :, None] < self.sliding_window
        near = self.rotate_query(qkv, qkv.q_positions)
        parts = [
            self.attend_blocks(near, mask, rows.stop, queries, (near_keys, in_window)),
            self.attend_sinks(qkv, mask, starts, queries),
        ]
        return merge_partial_softmax(parts).to(qkv.v.dtype)

    def attend_sinks(self, qkv: QKV, mask: Mask, starts: Tensor, queries: Tensor) -> PartialSoftmax:
        """Attend from each query to the sinks before its window.

        Such a query is far from the start of its sequence. So, in blocks no longer than the window,
        the block's first column is of the same sequence.
        """
        length, count = starts.shape[1], qkv.q.shape[2]
        first = torch.arange(self.sinks, device=queries.device)
        sinks = gather_columns(starts, queries[None, :, :1]) + first
        is_before = queries[:, :, None] - sinks[:, :, None] >= self.sliding_window
        visible = mask.gather(queries[None], sinks, length) & is_before
        far = self.rotate_query(qkv, self.positions_for_sinks(qkv, starts))
        far = join_sinks(far)
        indices = find_sinks(qkv, starts, length, sinks)
        queries = queries - (length - count)
        part = self.attend_gathered(far, queries[None], indices, visible)
        return flatten_blocks(part, queries, count)

    def weights(self, qkv: QKV, visible: Visibility) -> Tensor:
        starts, _ = find_sequences(visible.mask, visible.rows.stop, qkv.q.device)
        k = repeat_heads(qkv.k, self.heads).transpose(-2, -1)
        near, far = (
            self.biased_scores(self.rotate_query(qkv, positions), k)
            for positions in (qkv.q_positions, self.positions_for_sinks(qkv, starts))
        )
        columns = torch.arange(visible.rows.stop, device=qkv.q.device)
        is_before = columns[:, None] - columns >= self.sliding_window
        seen = self.restrict(qkv, visible).dense(qkv.q.device)
        return masked_softmax(torch.where(is_before, far, near), seen)

    def biased_scores(self, qkv: QKV, k: Tensor) -> Tensor:
        """Return the scores [b h q k] of queries for keys [b h c k]."""
        scores = qkv.q @ k * self.scale
        bias = self.position.score_bias(qkv.q_positions, qkv.k_positions)
        return scores if bias is None else scores + bias

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Score the window and the sinks before it apart, one query of one head at a time."""
        q, k, v = self.naive_qkv(x, source)
        scores = q.new_zeros(*q.shape[:3], k.shape[2])
        for b, h, i in product(*map(range, q.shape[:3])):
            seen = visible[b, i].nonzero()[:, 0]
            if len(seen) == 0:
                continue
            dropped = max(i - int(seen[0]) + 1 - self.sinks - self.sliding_window, 0)
            is_far = i - seen >= self.sliding_window
            for part, shift in ((seen[~is_far], 0), (seen[is_far], dropped)):
                here, there = self.naive_positions(b, i, part, positions)
                length = int(here) + 1
                here = here - shift
                query = self.position.naive_rotate(
                    q[b, h, i], here, head=h, length=length, of="query"
                )
                keys = self.position.naive_rotate(
                    k[b, h, part], there, head=h, length=length, of="key"
                )
                # No encoding that reads the content, as of other heads, is taken.
                heads = query[None], keys[None]
                tokens = source[b, part]
                inputs = NaiveScoreInputs(query, keys, here, there, h, self.scale, tokens, *heads)
                biases = self.position.naive_bias(inputs)
                scores[b, h, i, part] = keys @ query / math.sqrt(self.head_dim) + biases
        return self.naive_output(softmax(scores, visible) @ v, x)


def join_sinks(qkv: QKV) -> QKV:
    """Put the cached sinks, if there are any, before the other keys and values."""
    sinks = qkv.features
    if not sinks:
        return qkv
    k_positions = torch.cat([sinks["positions"], qkv.k_positions], dim=1)
    return qkv._replace(
        k=torch.cat([sinks["keys"], qkv.k], dim=2),
        v=torch.cat([sinks["values"], qkv.v], dim=2),
        k_positions=k_positions,
    )


def find_sinks(qkv: QKV, starts: Tensor, length: int, columns: Tensor) -> Tensor:
    """Return the indices in `join_sinks` of the sinks at columns [b|1 m s] of a row.

    Cached sinks are those of the sequence of the last cached token.
    """
    indices = columns - (length - qkv.k.shape[2])
    if not qkv.features:
        return indices
    last = length - qkv.q.shape[2] - 1
    cached = columns - starts[:, last : last + 1, None]
    return torch.where(indices >= 0, indices + qkv.features["keys"].shape[2], cached)


def gather_sinks(qkv: QKV, starts: Tensor, length: int, columns: Tensor) -> dict[str, Tensor]:
    """Return what a cache keeps of the sinks at columns [b|1 1 s] of a row."""
    indices = find_sinks(qkv, starts, length, columns)
    joined = join_sinks(qkv)
    positions = gather_columns(joined.k_positions, indices)[:, 0]
    return {
        "keys": gather_tokens(joined.k, indices)[:, :, 0],
        "values": gather_tokens(joined.v, indices)[:, :, 0],
        "positions": positions.expand(len(qkv.k), -1),
    }
