"""Attention by a pattern over sequences, of which a row may hold several, and padding."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from attention_zoo.attention.online_softmax import (
    PartialSoftmax,
    compute_partial_softmax,
    concatenate,
    gather_tokens,
    scatter_partial_softmax,
)
from attention_zoo.attention.softmax import QKV, SoftmaxAttention
from attention_zoo.backends.reference import repeat_heads
from attention_zoo.masks import Mask, Visibility, find_segment_starts, gather_columns

# Whether a query sees a key, by their indices in a sequence and its length: integers or tensors.
SequencePattern = Callable[[Any, Any, Any], Any]


class PatternAttention(SoftmaxAttention):
    """Softmax attention whose `is_visible` also works on tensors, elementwise.

    FlexAttention's mask functions are of the same kind.
    """

    counts_columns = True

    def is_visible(self, query: Any, key: Any, length: Any) -> Any:
        """Return a bool for integers, and a tensor of bools for tensors of integers."""
        raise NotImplementedError

    def weights(self, qkv: QKV, visible: Visibility) -> Tensor:
        return super().weights(qkv, self.restrict(qkv, visible))

    def restrict(self, qkv: QKV, visible: Visibility) -> Visibility:
        """Return what is visible by the mechanism's pattern too."""
        return add_pattern(qkv, visible, self.is_visible)


class BlockSparseAttention(PatternAttention):
    """Softmax attention from blocks of queries to the keys that are gathered for each block.

    A backend that skips invisible blocks may serve instead. FlexAttention skips blocks of 128
    neighbouring keys: a pattern with a key in each saves nothing. It takes an encoding's bias for
    all queries and keys, which needs length² memory.
    """

    backends: ClassVar[tuple[str, ...]] = ("blocks", "flex")

    def attend(self, qkv: QKV, visible: Visibility) -> Tensor:
        if self.backend == "blocks":
            return self.attend_by_blocks(qkv, visible)
        return self.attend_by_pattern(qkv, visible)

    def window_spans(self, qkv: QKV, visible: Visibility) -> Iterator[tuple[QKV, Visibility]]:
        """Yield all queries at once, as only the pattern's keys are gathered for each."""
        yield qkv, visible

    def attend_by_blocks(self, qkv: QKV, visible: Visibility) -> Tensor:
        """Compute `attend` over keys that are gathered for blocks of queries."""
        raise NotImplementedError

    def attend_by_pattern(self, qkv: QKV, visible: Visibility) -> Tensor:
        """Compute `attend` by a backend that takes the pattern."""
        return super().attend(qkv, self.restrict(qkv, visible))

    def attend_blocks(
        self, qkv: QKV, mask: Mask, length: int, queries: Tensor, *parts: tuple[Tensor, Tensor]
    ) -> PartialSoftmax:
        """Attend from blocks of queries: [b h q …], in the order of the queries.

        Args:
            qkv: the last queries and keys of a row of `length` columns.
            mask: over whole rows.
            length: number of columns of a row.
            queries: [m u], the columns of the queries of each block; every query once.
            parts: columns of keys [b|1 m s], which may lie outside the row, and the pattern
                [b|1 m u s|1], in which a query sees a key once.
        """
        count = qkv.q.shape[2]
        keys = concatenate(*(keys for keys, _ in parts), dim=2) - (length - qkv.k.shape[2])
        visible = concatenate(
            *(mask.gather(queries[None], keys, length) & pattern for keys, pattern in parts), dim=3
        )
        queries = queries - (length - count)
        part = self.attend_gathered(qkv, queries[None], keys, visible)
        return flatten_blocks(part, queries, count)

    def attend_from_first(
        self, qkv: QKV, mask: Mask, starts: Tensor, count: int, keys: Tensor, pattern: Tensor | bool
    ) -> PartialSoftmax:
        """Attend from the first `count` tokens of sequences to all keys of their rows: [b h n …].

        Each block of keys [m s], by columns, is compared with the first tokens of the sequence of
        its first column. `starts` [b|1 n] are the columns where the sequences of tokens start. The
        pattern [b|1 m u s] holds which keys of its sequence a first token sees; True for all.
        """
        length = starts.shape[1]
        start = gather_columns(starts, keys[None, :, :1])
        queries = start + torch.arange(count, device=keys.device)
        visible = mask.gather(queries, keys[None], length) & pattern & (queries < length)[..., None]
        part = self.attend_gathered(qkv, queries, keys[None], visible)
        return scatter_partial_softmax(part, queries, length)

    def attend_gathered(
        self, qkv: QKV, queries: Tensor, keys: Tensor, visible: Tensor
    ) -> PartialSoftmax:
        """Attend from blocks of queries [b|1 m u] to blocks of keys [b|1 m s]: [b h m u …].

        Queries and keys are indices in qkv; `visible` is [b|1 m u s].
        """
        return compute_partial_softmax(
            gather_tokens(qkv.q, queries),
            repeat_heads(gather_tokens(qkv.k, keys), self.heads),
            repeat_heads(gather_tokens(qkv.v, keys), self.heads),
            visible[:, None],
            bias=self.block_bias(
                gather_columns(qkv.q_positions, queries), gather_columns(qkv.k_positions, keys)
            ),
            scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
        )

    def block_bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor | None:
        """Return the bias [b|1 h m u s] between positions [b|1 m u] and [b|1 m s], or None."""
        batch, blocks = max(len(q_positions), len(k_positions)), q_positions.shape[1]
        bias = self.position.score_bias(
            q_positions.expand(batch, -1, -1).flatten(0, 1),
            k_positions.expand(batch, -1, -1).flatten(0, 1),
        )
        return None if bias is None else bias.unflatten(0, (batch, blocks)).movedim(2, 1)


def add_pattern(qkv: QKV, visible: Visibility, pattern: SequencePattern) -> Visibility:
    """Return what is visible by a pattern over the sequences of the rows too."""
    mask, length = visible.mask, visible.rows.stop
    if mask.key_mask is None and mask.segment_ids is None:
        return replace(visible, pattern=lambda b, i, j: pattern(i, j, length))
    starts, lengths = (x.expand(len(qkv.q), -1) for x in find_sequences(mask, length, qkv.q.device))
    return replace(
        visible,
        pattern=lambda b, i, j: pattern(i - starts[b, i], j - starts[b, i], lengths[b, i]),
    )


def flatten_blocks(part: PartialSoftmax, queries: Tensor, count: int) -> PartialSoftmax:
    """Put the results of blocks of queries [b h m u …] in the order of the first `count` [b h q …].

    `queries` [m u] are the indices of the queries, every one once.
    """
    order = queries.flatten().argsort()[:count]
    return PartialSoftmax(*(x.flatten(2, 3).index_select(2, order) for x in part))


def find_sequences(mask: Mask, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Find the sequences of each row: one for each segment, without padding at its ends.

    Returns:
        The start and the length of each token's sequence, in columns, [b|1 n] each. A sequence of
        padding alone starts after the row.
    """
    columns = torch.arange(length, device=device)[None, :]
    if mask.key_mask is None and mask.segment_ids is None:
        return torch.zeros_like(columns), torch.full_like(columns, length)
    real = torch.ones_like(columns, dtype=torch.bool) if mask.key_mask is None else mask.key_mask
    segments = torch.zeros_like(columns)
    if mask.segment_ids is not None:
        segments = find_segment_starts(mask.segment_ids).cumsum(dim=1) - 1
    segments = segments.expand(mask.batch or 1, -1)

    def reduce_columns(default: int, reduction: str) -> Tensor:
        """Reduce the columns of the real tokens of each sequence: [b n]."""
        real_columns = torch.where(real, columns, default).expand_as(segments)
        results = torch.full_like(segments, default)
        return results.scatter_reduce(1, segments, real_columns, reduction).gather(1, segments)

    starts = reduce_columns(length, "amin")
    return starts, reduce_columns(-1, "amax") - starts + 1
