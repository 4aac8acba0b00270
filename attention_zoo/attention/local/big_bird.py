"""BigBird's attention: a window, global and random blocks (Zaheer et al. 2020)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.local.pattern import BlockSparseAttention, find_sequences
from attention_zoo.attention.online_softmax import (
    PartialSoftmax,
    extend_blocks,
    merge_partial_softmax,
    split_into_blocks,
)
from attention_zoo.attention.softmax import QKV, register_softmax
from attention_zoo.errors import UserError, check_positive
from attention_zoo.masks import Mask, Visibility, gather_columns


@register_softmax(
    name="big_bird",
    paper="Zaheer et al. 2020, arXiv 2007.14062, §2 (BigBird-ITC)",
    equation="softmax(QKᵀ/√c) V over neighbouring, global and random blocks of keys",
    reference="transformers BigBirdBlockSparseAttention",
    deviations="global blocks are the first ones, where the authors' code takes the first and the "
    "last; all heads share the random blocks, drawn anew for each layer; the causal role, which "
    "sees the past of its blocks and draws among past ones, is ours; no cached decoding",
    roles=("causal", "global"),
    masks=("causal", "window", "key_mask", "segment_ids"),
    positions=("positions", "embeddings", "heads", "width", "scores"),
    cache="",
    cost="t",
)
class BigBirdAttention(BlockSparseAttention):
    """Attention between blocks of B tokens, which are counted from the start of each sequence.

    A query sees the keys of its own block and its two neighbours, of the global blocks, and of
    r blocks drawn at random from the others. Global blocks see everything. The draw depends on the
    seed, the layer, the query's block and, without causality, the length of the sequence: padding
    and other sequences cannot change it.

    Args:
        block: B, in tokens.
        global_blocks: number of global blocks: the first ones of each sequence.
        random_blocks: r, number of other blocks that a block sees; all, where there are fewer.
        seed: seed of the draw.
    """

    def __init__(
        self, *, block: int, global_blocks: int, random_blocks: int, seed: int, **options: Any
    ) -> None:
        super().__init__(**options)
        check_positive(block=block, global_blocks=global_blocks)
        if random_blocks < 0:
            raise UserError(f"random_blocks must be at least 0, got {random_blocks}.")
        self.block = block
        self.global_blocks = global_blocks
        self.random_blocks = random_blocks
        self.seed = seed

    def is_visible(self, query: Any, key: Any, length: Any) -> Any:
        random_blocks = self.draw_blocks(query // self.block, -(-length // self.block))
        return self.is_visible_by_blocks(query, key, random_blocks)

    def is_visible_by_blocks(self, query: Any, key: Any, random_blocks: list[Any]) -> Any:
        """Return whether a query sees a key, given the random blocks that the query sees."""
        query_block, key_block = query // self.block, key // self.block
        seen = (abs(query_block - key_block) <= 1) | (key_block < self.global_blocks)
        if self.role == "global":
            seen = seen | (query_block < self.global_blocks)
        for random_block in random_blocks:
            seen = seen | (key_block == random_block)
        return seen & (query >= 0)

    def draw_blocks(self, block: Any, count: Any) -> list[Any]:
        """Draw the random blocks that a block of `count` sees; -1 stands for none.

        Blocks are drawn without replacement, by Floyd's algorithm: of n candidates, r are drawn by
        a number below each of n - r + 1, …, n. Where that number was drawn before, the highest
        candidate takes its place. Arguments and results are integers or tensors.
        """
        ordinary = (block >= self.global_blocks) * 1
        earlier = clip_negative(block - 1 - self.global_blocks)
        later = clip_negative(count - block - 2) * ordinary
        candidates = earlier if self.role == "causal" else earlier + later
        numbers: list[Any] = []
        for i in range(self.random_blocks):
            highest = candidates - self.random_blocks + i
            number = hash_numbers(self.seed, self.layer, block, i) % (clip_negative(highest) + 1)
            repetitions = sum((number == other) * 1 for other in numbers)
            number = number + (highest - number) * (repetitions > 0)
            numbers.append(number * (highest >= 0) - 1 * (highest < 0))
        # The candidates are the blocks before the block's neighbours, then those after them.
        gap = block + 2 - earlier
        return [
            n + (n >= 0) * (self.global_blocks * (n < earlier) + gap * (n >= earlier))
            for n in numbers
        ]

    def restrict(self, qkv: QKV, visible: Visibility) -> Visibility:
        """Draw the blocks once for each query: a kernel would draw them for each pair."""
        length, device = visible.rows.stop, qkv.q.device
        sequences = find_sequences(visible.mask, length, device)
        starts, lengths = (x.expand(len(qkv.q), -1) for x in sequences)
        indices = torch.arange(length, device=device) - starts
        random_blocks = self.draw_blocks(indices // self.block, -(-lengths // self.block))

        def pattern(b: Tensor, i: Tensor, j: Tensor) -> Tensor:
            start = starts[b, i]
            blocks_of_query = [block[b, i] for block in random_blocks]
            return self.is_visible_by_blocks(i - start, j - start, blocks_of_query)

        return replace(visible, pattern=pattern)

    def attend_by_blocks(self, qkv: QKV, visible: Visibility) -> Tensor:
        mask, length = visible.mask, visible.rows.stop
        starts, lengths = find_sequences(mask, length, qkv.q.device)
        columns = torch.arange(length, device=qkv.q.device)
        parts = [self.attend_ordinary(qkv, mask, starts, lengths, columns)]
        if self.role == "global":
            # In a block of columns, keys that have two blocks before them are of the sequence of
            # the first column. Global blocks reach their neighbours in the other part.
            keys = split_into_blocks(columns, self.block)
            key_blocks = (keys - gather_columns(starts, keys[None])) // self.block
            count = self.global_blocks * self.block
            query_blocks = torch.arange(count, device=columns.device) // self.block
            is_after = key_blocks[..., None, :] - query_blocks[:, None] > 1
            parts.append(self.attend_from_first(qkv, mask, starts, count, keys, is_after))
        is_before = (columns < starts)[:, None, :, None]
        return merge_partial_softmax(parts).masked_fill(is_before, 0.0).to(qkv.v.dtype)

    def attend_ordinary(
        self, qkv: QKV, mask: Mask, starts: Tensor, lengths: Tensor, columns: Tensor
    ) -> PartialSoftmax:
        """Attend to neighbouring blocks, the global ones before these, and random ones.

        Queries are taken by blocks of columns. These are the blocks of the sequences only where
        all sequences start at the first column. Otherwise a block of columns may hold parts of
        several sequences. But only one of these, that of its first column, can have another block
        before it, and of that one the block of columns meets at most two blocks. Queries of the
        other sequences are in the first block of theirs, which is global.
        """
        is_aligned = mask.key_mask is None and mask.segment_ids is None
        queries = split_into_blocks(columns, self.block)
        query_blocks = (queries - gather_columns(starts, queries[None])) // self.block
        span = self.block if is_aligned else 2 * self.block - 1
        near_keys = extend_blocks(queries, span, 0 if mask.causal else span)
        start = gather_columns(starts, queries[None, :, :1])
        count = -(-gather_columns(lengths, queries[None, :, :1]) // self.block)
        global_keys = start + torch.arange(self.global_blocks * self.block, device=columns.device)

        def blocks_before(keys: Tensor) -> Tensor:
            """Return by how many blocks keys [b|1 m s] come before queries: [b|1 m u s]."""
            key_blocks = (keys - gather_columns(starts, keys)) // self.block
            return query_blocks[..., :, None] - key_blocks[..., None, :]

        parts = [
            (near_keys, blocks_before(near_keys).abs() <= 1),
            (global_keys, blocks_before(global_keys) > 1),
        ]
        for offset in range(1 if is_aligned else 2):
            block = query_blocks[:, :, :1] + offset
            for random_block in self.draw_blocks(block, count):
                first = start + random_block * self.block
                keys = first + torch.arange(self.block, device=columns.device)
                parts.append((keys, ((query_blocks == block) & (random_block >= 0))[..., None]))
        return self.attend_blocks(qkv, mask, len(columns), queries, *parts)


def clip_negative(x: Any) -> Any:
    """Return x, or 0 where x is negative."""
    return x * (x > 0)


def hash_numbers(*numbers: Any) -> Any:
    """Hash some small integers, or tensors of them, to a pseudo-random number below 2³¹ − 1."""
    state = 1
    for number in numbers:
        state = state + number
        for _ in range(2):
            # Products stay below 2⁶², so that they are the same in any integer type.
            state = (state ^ (state >> 15)) * 739982445 % 2147483647
    return state
