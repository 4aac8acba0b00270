"""Attention to chosen blocks of keys, counted over the real tokens of each sequence."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad
from torch.utils.checkpoint import checkpoint

from attention_zoo.attention.selected.topk_selection import ChoosingAttention, parts
from attention_zoo.attention.selected.unpadding import Compaction, compaction
from attention_zoo.attention.softmax import Heads
from attention_zoo.errors import UserError
from attention_zoo.masks import Mask


class Blocks(NamedTuple):
    """Keys and values side by side, and the means of blocks of them."""

    k: Tensor  # [b g k c]
    v: Tensor  # [b g k c]
    means: tuple[Tensor, ...]  # [b g s c] each, as `means_of` gives them
    step: int  # from the beginning of one mean's block to that of the next, in tokens


class BlockAttention(ChoosingAttention):
    """Attention of each query to a few blocks of its sequence, which begin with the sequence.

    Letters: m blocks of a sequence as long as all keys, s means of blocks.

    Args:
        block: B, the tokens in a block.
        blocks: how many blocks a query attends to, at most.
    """

    # Blocks that every query attends to; they count among `blocks`.
    always: int

    def __init__(self, *, block: int, blocks: int, **options: Any) -> None:
        super().__init__(**options)
        if block < 1:
            raise UserError(f"block must be at least 1 token, got {block}.")
        if blocks < self.always:
            raise UserError(
                f"blocks must be at least {self.always}, those that {self.card.name} always "
                f"attends to, got {blocks}."
            )
        self.block = block
        self.blocks = blocks

    def attend(self, heads: Heads, mask: Mask, last: int) -> Tensor:
        queries = heads.q.shape[2]
        packed = compaction(mask, queries, last, heads.q.device)
        blocks = self.blocks_of(heads, mask, packed)
        outputs = []
        for own in parts(queries, max(self.blocks * self.block, -(-last // self.block))):
            more = [part[:, :, own] for part in heads.more.values()]
            outputs.append(
                checkpoint(
                    self.attend_some,
                    heads.q[:, :, own],
                    blocks,
                    *packed.seen(own),
                    *more,
                    use_reentrant=False,
                )
            )
        return torch.cat(outputs, dim=2)

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
        packed = compaction(mask, x.shape[1], x.shape[1], x.device)
        blocks = self.blocks_of(heads, mask, packed)
        weights = self.map_of(heads.q, blocks, packed.first, packed.last, *heads.more.values())
        return packed.unpack(weights)

    def attend_some(
        self, q: Tensor, blocks: Blocks, first: Tensor, last: Tensor, *more: Tensor
    ) -> Tensor:
        """[b h q c], for queries [b h q c].

        Args:
            first, last: [b|1 q|1] and [b|1 q], the packed keys that each query sees.
            more: what `Heads.more` holds of these queries.
        """
        raise NotImplementedError

    def map_of(
        self, q: Tensor, blocks: Blocks, first: Tensor, last: Tensor, *more: Tensor
    ) -> Tensor:
        """The weights [b h q k] over packed keys, of the same arguments."""
        raise NotImplementedError

    def means_of(self, k: Tensor, v: Tensor, step: int) -> tuple[Tensor, ...]:
        """What is needed to choose blocks, or in their place."""
        raise NotImplementedError

    def blocks_of(self, heads: Heads, mask: Mask, packed: Compaction) -> Blocks:
        k, v = packed.pack(heads.k), packed.pack(heads.v)
        # Packed sequences may begin anywhere, and their blocks with them.
        step = self.block if mask.segment_ids is None else 1
        return Blocks(k, v, self.means_of(k, v, step), step)

    def means(self, x: Tensor, step: int) -> Tensor:
        """Of the blocks of x [b g k c] that begin at multiples of `step`: [b g s c]."""
        x = pad(x, (0, 0, 0, max(self.block - x.shape[2], 0)))
        means = avg_pool1d(x.transpose(-2, -1).flatten(0, 1), self.block, stride=step)
        return means.transpose(-2, -1).unflatten(0, x.shape[:2]).contiguous()

    def resolve_positions(self, blocks: Blocks, first: Tensor) -> Tensor:
        """Where among the means those of a query's sequence are: [b|1 1 q|1 m].

        A block that is not whole has no mean: what is found in its place must not be looked at.
        """
        numbers = torch.arange(-(-blocks.k.shape[2] // self.block), device=first.device)
        starts = first[:, None, :, None] + numbers * self.block
        return (starts // blocks.step).clamp(max=blocks.means[0].shape[2] - 1)

    def own_block(self, first: Tensor, last: Tensor) -> Tensor:
        """The number of the block where a query stands, [b|1 1 q 1]; -1 if it sees nothing."""
        return ((last - first) // self.block)[:, None, :, None]

    def tokens(
        self, blocks: Blocks, numbers: Tensor, first: Tensor, last: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The keys in the blocks of these numbers [b e q m], and which of them are visible.

        Both are [b e q n].
        """
        starts = first[:, None, :, None] + numbers * self.block
        inside = torch.arange(self.block, device=first.device)
        tokens = (starts[..., None] + inside).flatten(-2)
        return tokens.clamp(max=blocks.k.shape[2] - 1), tokens <= last[:, None, :, None]
