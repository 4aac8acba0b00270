"""Attention to selected blocks of keys, counted over the real tokens of each sequence."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad
from torch.utils.checkpoint import checkpoint

from attention_zoo.attention.selected.topk_selection import TopKSelectionAttention, split_queries
from attention_zoo.attention.selected.unpadding import Unpadding, find_unpadding
from attention_zoo.attention.softmax import QKV
from attention_zoo.errors import UserError
from attention_zoo.masks import Visibility


class KeyBlocks(NamedTuple):
    """Keys and values without padding, and the means of blocks of them."""

    k: Tensor  # [b g k c]
    v: Tensor  # [b g k c]
    means: tuple[Tensor, ...]  # [b g s c] each, from `compute_means`
    step: int  # from the start of one mean's block to that of the next, in tokens


class RangeQueries(NamedTuple):
    """Queries, and the range of keys without padding that each of them sees."""

    q: Tensor  # [b h q c]
    first: Tensor  # [b|1 q|1], the first key of the range
    last: Tensor  # [b|1 q], the last key of the range
    features: dict[str, Tensor]  # what the mechanism needs of every query, [b … q c] each

    def take(self, part: slice) -> "RangeQueries":
        """Return some of the queries."""
        first = self.first if self.first.shape[1] == 1 else self.first[:, part]
        features = {name: feature[:, :, part] for name, feature in self.features.items()}
        return RangeQueries(self.q[:, :, part], first, self.last[:, part], features)


class TopKBlockAttention(TopKSelectionAttention):
    """Attention of each query to a few blocks of its sequence.

    Blocks are counted from the first token of the sequence. Letters: m blocks of a sequence as
    long as all keys, s means of blocks.

    Args:
        block: B, the tokens in a block.
        blocks: the largest number of blocks that a query attends to.
    """

    # Number of blocks that a query always attends to; they count among `blocks`.
    fixed_blocks: int

    def __init__(self, *, block: int, blocks: int, **options: Any) -> None:
        super().__init__(**options)
        if block < 1:
            raise UserError(f"block must be at least 1 token, got {block}.")
        if blocks < self.fixed_blocks:
            raise UserError(
                f"blocks must be at least {self.fixed_blocks}, those that {self.card.name} always "
                f"attends to, got {blocks}."
            )
        self.block = block
        self.blocks = blocks

    def attend(self, qkv: QKV, visible: Visibility) -> Tensor:
        queries, blocks, _ = self.split_keys(qkv, visible)
        gathered = max(self.blocks * self.block, -(-visible.rows.stop // self.block))
        outputs = [
            checkpoint(self.attend_blocks, queries.take(part), blocks, use_reentrant=False)
            for part in split_queries(len(visible.rows), gathered)
        ]
        return torch.cat(outputs, dim=2)

    def weights(self, qkv: QKV, visible: Visibility) -> Tensor:
        queries, blocks, unpadding = self.split_keys(qkv, visible)
        return unpadding.pad(self.weigh_blocks(queries, blocks))

    def attend_blocks(self, queries: RangeQueries, blocks: KeyBlocks) -> Tensor:
        """Compute the weighted sums of values, [b h q c]."""
        raise NotImplementedError

    def weigh_blocks(self, queries: RangeQueries, blocks: KeyBlocks) -> Tensor:
        """Compute the weights [b h q k] over keys without padding."""
        raise NotImplementedError

    def compute_means(self, k: Tensor, v: Tensor, step: int) -> tuple[Tensor, ...]:
        """Compute the means of blocks that the mechanism needs."""
        raise NotImplementedError

    def split_keys(
        self, qkv: QKV, visible: Visibility
    ) -> tuple[RangeQueries, KeyBlocks, Unpadding]:
        """Remove the padding, and split the keys into blocks."""
        mask, rows = visible.mask, visible.rows
        unpadding = find_unpadding(mask, len(rows), rows.stop, qkv.q.device)
        k, v = unpadding.unpad(qkv.k), unpadding.unpad(qkv.v)
        # Packed sequences may start anywhere, and their blocks with them.
        step = self.block if mask.segment_ids is None else 1
        queries = RangeQueries(qkv.q, unpadding.first, unpadding.last, qkv.features)
        return queries, KeyBlocks(k, v, self.compute_means(k, v, step), step), unpadding

    def average_blocks(self, x: Tensor, step: int) -> Tensor:
        """Average the blocks of x [b g k c] that start at multiples of `step`: [b g s c]."""
        x = pad(x, (0, 0, 0, max(self.block - x.shape[2], 0)))
        means = avg_pool1d(x.transpose(-2, -1).flatten(0, 1), self.block, stride=step)
        return means.transpose(-2, -1).unflatten(0, x.shape[:2]).contiguous()

    def find_means(self, queries: RangeQueries, blocks: KeyBlocks) -> Tensor:
        """Return the indices, among the means, of the blocks of each sequence: [b|1 1 q|1 m].

        A block that is not whole has no mean: its index points to another, to be ignored.
        """
        numbers = torch.arange(-(-blocks.k.shape[2] // self.block), device=queries.q.device)
        starts = queries.first[:, None, :, None] + numbers * self.block
        return (starts // blocks.step).clamp(max=blocks.means[0].shape[2] - 1)

    def find_own_block(self, queries: RangeQueries) -> Tensor:
        """Return the number of each query's own block, [b|1 1 q 1]; -1 if it sees nothing."""
        return ((queries.last - queries.first) // self.block)[:, None, :, None]

    def find_tokens(
        self, queries: RangeQueries, blocks: KeyBlocks, numbers: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the keys in the blocks of these numbers [b e q m], and which of them are visible.

        Both results are [b e q n].
        """
        starts = queries.first[:, None, :, None] + numbers * self.block
        tokens = starts[..., None] + torch.arange(self.block, device=starts.device)
        tokens = tokens.flatten(-2)
        visible = tokens <= queries.last[:, None, :, None]
        return tokens.clamp(max=blocks.k.shape[2] - 1), visible
