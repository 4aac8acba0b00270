"""Attention to selected blocks of keys, counted over the real tokens of each sequence.

The real tokens of a row are moved to its front. Then the keys that a query of causal attention sees
are a range: from the first token of its own sequence to itself. So a padded row gives what its real
tokens give alone, and packed sequences give what they give apart.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

from attention_zoo.attention.selected.topk_selection import (
    TopKSelectionAttention,
    select_largest,
    split_queries,
)
from attention_zoo.attention.softmax import QKV
from attention_zoo.checkpointing import checkpoint
from attention_zoo.errors import UserError, check_positive
from attention_zoo.masks import Visibility, count_real_tokens, order_real_first


class UnpaddedQKV(NamedTuple):
    """Queries, keys and values, real keys first; each query sees a range of keys."""

    q: Tensor  # [b h q c]
    k: Tensor  # [b g k c]
    v: Tensor  # [b g k c]
    features: dict[str, Tensor]  # of every query, [b … q c] each
    # The first and the last key that a query sees: [b|1 q], or [1 1] for a `first` that all queries
    # share. If a query sees nothing, the last is before the first. A query that is padding sees up
    # to the last real key before it.
    first: Tensor
    last: Tensor
    order: Tensor | None  # [b k], the column of each key in the row; None where all keys stay
    means: tuple[Tensor, ...]  # of blocks of keys or values, [b g s c] each
    step: int  # from the start of one mean's block to that of the next, in tokens

    def take(self, part: slice) -> "UnpaddedQKV":
        """Return some of the queries, and all keys."""
        # torch.compile makes constants of the ends of a slice that a comprehension captures.
        start, stop = part.start, part.stop
        return self._replace(
            q=self.q[:, :, part],
            features={name: feature[:, :, start:stop] for name, feature in self.features.items()},
            first=self.first if self.first.shape[1] == 1 else self.first[:, part],
            last=self.last[:, part],
        )


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
        check_positive(block=block)
        if blocks < self.fixed_blocks:
            raise UserError(
                f"blocks must be at least {self.fixed_blocks}, those that {self.card.name} always "
                f"attends to, got {blocks}."
            )
        self.block = block
        self.blocks = blocks

    def attend(self, qkv: QKV, visible: Visibility) -> Tensor:
        unpadded = self.unpad(qkv, visible)
        gathered = max(self.blocks * self.block, -(-visible.rows.stop // self.block))
        outputs = [
            checkpoint(self.attend_blocks, unpadded.take(part))
            for part in split_queries(qkv.q.shape[2], gathered)
        ]
        return torch.cat(outputs, dim=2)

    def weights(self, qkv: QKV, visible: Visibility) -> Tensor:
        unpadded = self.unpad(qkv, visible)
        weights = self.weigh_blocks(unpadded)
        if unpadded.order is None:
            return weights
        columns = unpadded.order.argsort(dim=1)[:, None, None]
        return weights.gather(3, columns.expand_as(weights))

    def attend_blocks(self, qkv: UnpaddedQKV) -> Tensor:
        """Compute the weighted sums of values, [b h q c]."""
        raise NotImplementedError

    def weigh_blocks(self, qkv: UnpaddedQKV) -> Tensor:
        """Compute the weights [b h q k] of the keys in their present order."""
        raise NotImplementedError

    def compute_block_means(self, k: Tensor, v: Tensor, step: int) -> tuple[Tensor, ...]:
        """Compute the means of blocks that the mechanism needs."""
        raise NotImplementedError

    def unpad(self, qkv: QKV, visible: Visibility) -> UnpaddedQKV:
        """Move the real keys to the front, and average blocks of them."""
        mask, rows = visible.mask, visible.rows
        assert mask.causal and mask.window is None
        counts, first = count_real_tokens(mask, rows.stop, qkv.q.device)
        k, v, order, step = qkv.k, qkv.v, None, self.block
        if mask.key_mask is not None:
            order = order_real_first(mask.key_mask)
            k, v = (x.gather(2, order[:, None, :, None].expand_as(x)) for x in (k, v))
        if mask.segment_ids is not None:
            # Packed sequences may start anywhere, and their blocks with them.
            first, step = first[:, rows.start :], 1
        k, v, last = k.contiguous(), v.contiguous(), counts[:, rows.start :] - 1
        means = self.compute_block_means(k, v, step)
        return UnpaddedQKV(qkv.q, k, v, qkv.features, first, last, order, means, step)

    def average_blocks(self, x: Tensor, step: int) -> Tensor:
        """Average the blocks of x [b g k c] that start at multiples of `step`: [b g s c]."""
        x = pad(x, (0, 0, 0, max(self.block - x.shape[2], 0)))
        means = avg_pool1d(x.transpose(-2, -1).flatten(0, 1), self.block, stride=step)
        return means.transpose(-2, -1).unflatten(0, x.shape[:2]).contiguous()

    def find_means(self, qkv: UnpaddedQKV) -> Tensor:
        """Return the indices, among the means, of the blocks of each sequence: [b|1 1 q|1 m].

        A block that is not whole has no mean: its index points to another, to be ignored.
        """
        numbers = torch.arange(-(-qkv.k.shape[2] // self.block), device=qkv.q.device)
        starts = qkv.first[:, None, :, None] + numbers * self.block
        return (starts // qkv.step).clamp(max=qkv.means[0].shape[2] - 1)

    def find_query_block(self, qkv: UnpaddedQKV) -> Tensor:
        """Return the number of the block of each query, [b|1 1 q 1]; -1 if it sees nothing."""
        return ((qkv.last - qkv.first) // self.block)[:, None, :, None]

    def find_tokens(self, qkv: UnpaddedQKV, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys of blocks [b e q m], and which are visible; both are [b e q n]."""
        starts = qkv.first[:, None, :, None] + numbers * self.block
        tokens = (starts[..., None] + torch.arange(self.block, device=starts.device)).flatten(-2)
        visible = tokens <= qkv.last[:, None, :, None]
        return tokens.clamp(max=qkv.k.shape[2] - 1), visible

    def weigh_best_blocks(self, qkv: UnpaddedQKV, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys [b e q n] in the blocks of the best scores [b e q m]; their weights."""
        tokens, visible = self.find_tokens(qkv, select_largest(scores, self.blocks))
        return tokens, self.weigh_selected(qkv.q, qkv.k, tokens, visible)
