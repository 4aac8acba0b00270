"""Attention of blocks of queries to the keys gathered for each: no work but for what is visible."""

from typing import NamedTuple

from torch import Tensor

from attention_zoo.attention.local.pattern import PatternMap, SequencePattern, placed
from attention_zoo.attention.online_softmax import PartialSoftmax, gathered, partial_softmax
from attention_zoo.attention.softmax import Heads, seen_by
from attention_zoo.backends.reference import repeat_heads
from attention_zoo.masks import Mask, gather_columns


class Blocks(NamedTuple):
    """Queries in blocks, and the keys that each block is compared with, by their columns.

    Columns may lie outside the row: `visible` is false there.
    """

    queries: Tensor  # [m u], every query once
    keys: Tensor  # [b|1 m s], every visible key once
    visible: Tensor  # [b|1 m u s]


class BlockAttention(PatternMap):
    """Softmax attention over gathered blocks of keys, or by a backend that skips what is unseen.

    FlexAttention skips blocks of 128 neighbouring keys: a pattern with a key in each saves nothing.
    What an encoding adds to scores is there made for all queries and keys, by length² memory.
    """

    backends = ("blocks", "flex")

    def attend(self, heads: Heads, mask: Mask, last: int) -> Tensor:
        if self.backend == "blocks":
            return self.by_blocks(heads, mask, last)
        return self.by_pattern(heads, mask, last)

    def by_blocks(self, heads: Heads, mask: Mask, last: int) -> Tensor:
        """Over keys that are gathered for blocks of queries: [b h q c]."""
        raise NotImplementedError

    def by_pattern(self, heads: Heads, mask: Mask, last: int) -> Tensor:
        """By the backend, which is told who sees whom: [b h q c]."""
        return self.attend_pattern(heads, mask, last, self.is_visible)

    def attend_pattern(self, heads: Heads, mask: Mask, last: int, sees: SequencePattern) -> Tensor:
        pattern = placed(sees, mask, len(heads.q), last, heads.q.device)
        return self.attend_visible(heads, seen_by(heads, mask, last, pattern))

    def attend_blocks(self, heads: Heads, blocks: Blocks, last: int) -> PartialSoftmax:
        """[b h q …], in the order of the queries, which are the last ones of `last` tokens."""
        count = heads.q.shape[2]
        queries, keys = blocks.queries - (last - count), blocks.keys - (last - heads.k.shape[2])
        part = self.attend_gathered(
            gathered(heads.q, queries[None]),
            gathered(heads.k, keys),
            gathered(heads.v, keys),
            gather_columns(heads.q_positions, queries[None]),
            gather_columns(heads.k_positions, keys),
            blocks.visible,
        )
        order = queries.flatten().argsort()[:count]
        return PartialSoftmax(*(x.flatten(2, 3).index_select(2, order) for x in part))

    def attend_gathered(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_positions: Tensor,
        k_positions: Tensor,
        visible: Tensor,
    ) -> PartialSoftmax:
        """Blocks against blocks.

        Args:
            q: [b h m u c]. k, v: [b g m s c].
            q_positions: [b|1 m u]. k_positions: [b|1 m s].
            visible: [b|1 m u s].

        Returns:
            [b h m u …].
        """
        return partial_softmax(
            q,
            repeat_heads(k, self.heads),
            repeat_heads(v, self.heads),
            visible[:, None],
            bias=self.block_bias(q_positions, k_positions),
            scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
        )

    def block_bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor | None:
        """Between [b|1 m u] and [b|1 m s]: [b|1 h m u s]."""
        batch, blocks = max(len(q_positions), len(k_positions)), q_positions.shape[1]
        bias = self.position.score_bias(
            q_positions.expand(batch, -1, -1).flatten(0, 1),
            k_positions.expand(batch, -1, -1).flatten(0, 1),
        )
        return None if bias is None else bias.unflatten(0, (batch, blocks)).movedim(2, 1)
