"""BigBird's attention: a window, global and random blocks (Zaheer et al. 2020)."""

from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.local.blocks import BlockAttention, Blocks
from attention_zoo.attention.local.pattern import Sequences, sequences
from attention_zoo.attention.online_softmax import (
    PartialSoftmax,
    concatenate,
    gathered,
    merge_partial,
    neighbouring_columns,
    scatter_blocks,
    split_into_blocks,
)
from attention_zoo.attention.softmax import Heads, seen_by
from attention_zoo.errors import UserError
from attention_zoo.masks import Mask, gather_columns
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="big_bird",
        paper="Zaheer et al. 2020, arXiv 2007.14062, §2 (BigBird-ITC)",
        equation="softmax(QKᵀ/√c) V over neighbouring, global and random blocks of keys",
        reference="transformers BigBirdBlockSparseAttention",
        deviations="global blocks are the first ones, where the authors' code takes the first and "
        "the last; all heads share the random blocks, drawn anew for each layer; the causal role, "
        "which sees the past of its blocks and draws among past ones, is ours; no cached decoding",
        roles=("causal", "global"),
        masks=("causal", "window", "key_mask", "segment_ids"),
        positions=("positions", "embeddings", "heads", "width", "scores"),
        cost="t",
    )
)
class BigBirdAttention(BlockAttention):
    """Attention between blocks of B tokens, which are counted from the start of each sequence.

    A query sees the keys of its own block and its two neighbours, of the global blocks, and of
    r blocks drawn at random from the others. Global blocks see everything. The draw hangs on the
    seed, the layer, the query's block, and, without causality, the sequence's length: the rest of
    the batch, or padding, cannot change it.

    Args:
        block: B, in tokens.
        global_blocks: how many blocks are global: the first of each sequence.
        random_blocks: r, how many other blocks a block sees; all of them, where there are fewer.
        seed: of the draw.
    """

    def __init__(
        self,
        *,
        block: int,
        global_blocks: int,
        random_blocks: int,
        seed: int,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if min(block, global_blocks) < 1 or random_blocks < 0:
            raise UserError(
                "big_bird needs a block of at least 1 token, at least 1 of global_blocks and 0 of "
                f"random_blocks, got block={block}, global_blocks={global_blocks}, "
                f"random_blocks={random_blocks}."
            )
        self.block = block
        self.global_blocks = global_blocks
        self.random_blocks = random_blocks
        self.seed = seed

    def is_visible(self, query: Any, key: Any, length: Any) -> Any:
        return self.joins(query, key, self.drawn(query // self.block, -(-length // self.block)))

    def joins(self, query: Any, key: Any, drawn: list[Any]) -> Any:
        """Whether a query sees a key, by the random blocks that were drawn for it."""
        own, other = query // self.block, key // self.block
        seen = (abs(own - other) <= 1) | (other < self.global_blocks)
        if self.role == "global":
            seen = seen | (own < self.global_blocks)
        for number in drawn:
            seen = seen | (other == number)
        return seen & (query >= 0)

    def drawn(self, own: Any, blocks: Any) -> list[Any]:
        """The numbers of the random blocks that a block sees, or -1; of integers or tensors.

        Without replacement, by Floyd's algorithm: of n candidates, r are drawn by a number below
        each of n - r + 1, …, n, of which the highest stands in for one that was drawn before.

        Args:
            own: the number of the query's block.
            blocks: how many the sequence has.
        """
        ordinary = (own >= self.global_blocks) * 1
        earlier = at_least_0(own - 1 - self.global_blocks)
        later = at_least_0(blocks - own - 2) * ordinary
        candidates = earlier if self.role == "causal" else earlier + later
        found: list[Any] = []
        for i in range(self.random_blocks):
            highest = candidates - self.random_blocks + i
            number = scrambled(self.seed, self.layer, own, i) % (at_least_0(highest) + 1)
            taken = sum((number == other) * 1 for other in found)
            number = number + (highest - number) * (taken > 0)
            found.append(number * (highest >= 0) - 1 * (highest < 0))
        # Candidates are counted over those before the neighbours, then over those behind them.
        gap = own + 2 - earlier
        return [
            n + (n >= 0) * (self.global_blocks * (n < earlier) + gap * (n >= earlier))
            for n in found
        ]

    def by_pattern(self, heads: Heads, mask: Mask, last: int) -> Tensor:
        """With the draw of each query made before: a kernel would make it for each pair."""
        columns = torch.arange(last, device=heads.q.device)
        starts, lengths = (
            part.expand(len(heads.q), -1) for part in sequences(mask, last, columns.device)
        )
        drawn = self.drawn((columns - starts) // self.block, -(-lengths // self.block))

        def pattern(b: Tensor, i: Tensor, j: Tensor) -> Tensor:
            start = starts[b, i]
            return self.joins(i - start, j - start, [number[b, i] for number in drawn])

        return self.attend_visible(heads, seen_by(heads, mask, last, pattern))

    def by_blocks(self, heads: Heads, mask: Mask, last: int) -> Tensor:
        rows = sequences(mask, last, heads.q.device)
        columns = torch.arange(last, device=heads.q.device)
        parts = [self.attend_blocks(heads, self.of_queries(mask, rows, columns), last)]
        if self.role == "global":
            parts.append(self.of_global_blocks(heads, mask, rows, columns))
        before = (columns < rows.starts)[:, None, :, None]
        return merge_partial(parts).masked_fill(before, 0.0).to(heads.v.dtype)

    def of_queries(self, mask: Mask, rows: Sequences, columns: Tensor) -> Blocks:
        """Each query's neighbouring blocks, the global ones before them, and random ones.

        Queries are taken by blocks of columns, which are those of the sequences only where these
        start together with the row. Else a block of columns may hold parts of several sequences,
        but only of one, that of its first column, such that have a block before them; and of that
        no more than two blocks. The others are global, or see nothing beyond their neighbours.
        """
        length, device = len(columns), columns.device
        aligned = mask.key_mask is None and mask.segment_ids is None
        queries = split_into_blocks(columns, self.block)
        own = (queries - gather_columns(rows.starts, queries[None])) // self.block
        slack = self.block if aligned else 2 * self.block - 1
        near = neighbouring_columns(queries, slack, 0 if mask.causal else slack)
        start = gather_columns(rows.starts, queries[None, :, :1])
        blocks = -(-gather_columns(rows.lengths, queries[None, :, :1]) // self.block)
        far = start + torch.arange(self.global_blocks * self.block, device=device)

        def ahead(keys: Tensor) -> Tensor:
            """By how many blocks the queries are ahead of keys."""
            return (
                own[..., :, None]
                - ((keys - gather_columns(rows.starts, keys)) // self.block)[..., None, :]
            )

        keys, chosen = [near, far], [ahead(near).abs() <= 1, ahead(far) > 1]
        for met in range(1 if aligned else 2):
            number = own[:, :, :1] + met
            for drawn in self.drawn(number, blocks):
                keys.append(start + drawn * self.block + torch.arange(self.block, device=device))
                chosen.append(((own == number) & (drawn >= 0))[..., None])
        seen = [mask.gather(queries[None], part, length) for part in keys]
        visible = [a & b for a, b in zip(seen, chosen, strict=True)]
        return Blocks(queries, concatenate(*keys, dim=2), concatenate(*visible, dim=3))

    def of_global_blocks(
        self, heads: Heads, mask: Mask, rows: Sequences, columns: Tensor
    ) -> PartialSoftmax:
        """What the global blocks see behind their neighbours, [b h n …].

        Each block of keys is compared with the global blocks of the sequence of its first column:
        in a block of columns, keys that have two blocks before them are of that sequence.
        """
        length = len(columns)
        keys = split_into_blocks(columns, self.block)[None]
        first = gather_columns(rows.starts, keys[:, :, :1])
        queries = first + torch.arange(self.global_blocks * self.block, device=columns.device)
        own = (queries - first) // self.block
        other = (keys - gather_columns(rows.starts, keys)) // self.block
        behind = other[..., None, :] - own[..., :, None] > 1
        inside = (queries < length)[..., None]
        part = self.attend_gathered(
            gathered(heads.q, queries),
            gathered(heads.k, keys),
            gathered(heads.v, keys),
            gather_columns(heads.q_positions, queries),
            gather_columns(heads.k_positions, keys),
            mask.gather(queries, keys, length) & behind & inside,
        )
        return scatter_blocks(part, queries, length)


def at_least_0(x: Any) -> Any:
    return x * (x > 0)


def scrambled(*numbers: Any) -> Any:
    """A pseudo-random number below 2³¹ − 1 for some small ones; of integers, or of tensors."""
    state = 1
    for number in numbers:
        state = state + number
        for _ in range(2):
            # Products stay below 2⁶², so that they are the same in any integer type.
            state = (state ^ (state >> 15)) * 739982445 % 2147483647
    return state
