"""Attention of blocks of queries to the keys that are gathered for each block."""

from typing import NamedTuple

from torch import Tensor

from attention_zoo.attention.local.pattern import PatternAttention
from attention_zoo.attention.online_softmax import (
    PartialSoftmax,
    compute_partial_softmax,
    gather_tokens,
)
from attention_zoo.attention.softmax import QKV
from attention_zoo.backends.reference import repeat_heads
from attention_zoo.masks import Visibility, gather_columns


class GatheredBlocks(NamedTuple):
    """Blocks of queries and the keys that each block is compared with, by their columns.

    Columns may lie outside the row: `visible` is false there.
    """

    queries: Tensor  # [m u], every query once
    keys: Tensor  # [b|1 m s], every visible key once
    visible: Tensor  # [b|1 m u s]


class BlockSparseAttention(PatternAttention):
    """Softmax attention over gathered blocks of keys, or by a backend that skips invisible blocks.

    FlexAttention skips blocks of 128 neighbouring keys: a pattern with a key in each saves nothing.
    It takes an encoding's bias for all queries and keys, which needs length² memory.
    """

    backends = ("blocks", "flex")

    def attend(self, qkv: QKV, visible: Visibility) -> Tensor:
        if self.backend == "blocks":
            return self.attend_by_blocks(qkv, visible)
        return self.attend_by_pattern(qkv, visible)

    def attend_by_blocks(self, qkv: QKV, visible: Visibility) -> Tensor:
        """Compute `attend` over keys that are gathered for blocks of queries."""
        raise NotImplementedError

    def attend_by_pattern(self, qkv: QKV, visible: Visibility) -> Tensor:
        """Compute `attend` by a backend that takes the pattern."""
        return super().attend(qkv, self.restrict(qkv, visible))

    def attend_blocks(self, qkv: QKV, blocks: GatheredBlocks, length: int) -> PartialSoftmax:
        """Attend within blocks: [b h q …], in the order of the queries.

        Queries and keys are the last ones of a row of `length` columns.
        """
        count = qkv.q.shape[2]
        queries, keys = blocks.queries - (length - count), blocks.keys - (length - qkv.k.shape[2])
        part = self.attend_gathered(qkv, queries[None], keys, blocks.visible)
        order = queries.flatten().argsort()[:count]
        return PartialSoftmax(*(x.flatten(2, 3).index_select(2, order) for x in part))

    def attend_gathered(
        self, qkv: QKV, queries: Tensor, keys: Tensor, visible: Tensor
    ) -> PartialSoftmax:
        """Attend from blocks of queries to blocks of keys: [b h m u …].

        Args:
            qkv: the queries, keys and values to gather from.
            queries: [b|1 m u], the index of each in qkv.q.
            keys: [b|1 m s], the index of each in qkv.k.
            visible: [b|1 m u s].
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
