"""Native sparse attention, NSA (Yuan et al. 2025)."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from attention_zoo.attention.selected.blocks import BlockAttention, Blocks
from attention_zoo.attention.selected.topk_selection import (
    gathered,
    largest,
    spread,
    weigh,
    weighted,
)
from attention_zoo.attention.softmax import Heads
from attention_zoo.caches import TokenCache
from attention_zoo.errors import UserError
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="native_sparse",
        paper="Yuan et al. 2025, arXiv 2502.11089, §3",
        equation="Σ over compressed, selected and sliding of gate · softmax(q Kᵀ/√c) V",
        reference="flash-linear-attention naive_nsa",
        deviations="as in flash-linear-attention: a block is compressed by its mean, not by a "
        "learned network; compressed and selected blocks are the same, so do not overlap; the "
        "three branches share keys and values; gates are a linear layer with a sigmoid. Blocks "
        "and the sliding window are counted over the real tokens of each packed sequence; no other "
        "window, which would cut blocks; no encoding on scores, which a block has none of; "
        "decoding makes the means of blocks anew from the cached keys and values",
        roles=("causal",),
        masks=("causal", "key_mask", "segment_ids"),
        positions=("positions", "embeddings", "heads"),
        cache="keys and values",
        decode_state="2·t·g·c",
        weights="nonnegative",
        chooses="blocks of keys",
    )
)
class NativeSparseAttention(BlockAttention):
    """Three views of the past, each with a gate of sigmoid(W x) for every head:

        compressed: the means of K and V over each block that is whole, with weights p
        selected: all keys of the blocks with the largest p, summed over the heads of a group
        sliding: the last `window` keys

    The first block, the own one, which is seen up to oneself, and the one before it are always
    selected, and count among `blocks`. The paper has block = 64, blocks = 16 and window = 512.

    Args:
        window: keys that the sliding branch sees, oneself included.
    """

    always = 3

    def __init__(self, *, window: int, **options: Any) -> None:
        super().__init__(**options)
        if window < 1:
            raise UserError(f"window must be at least 1 (oneself), got {window}.")
        # Not `self.window`, which would narrow all three branches.
        self.sliding = window
        self.gate = nn.Linear(self.dim, 3 * self.heads, bias=False)

    def heads_of(
        self,
        x: Tensor,
        context: Tensor | None,
        positions: Tensor | None,
        cache: TokenCache | None,
    ) -> Heads:
        gates = rearrange(self.gate(x).sigmoid(), "b q (h n) -> b h q n", h=self.heads)
        return super().heads_of(x, context, positions, cache)._replace(more={"gates": gates})

    def attend_some(
        self, q: Tensor, blocks: Blocks, first: Tensor, last: Tensor, *more: Tensor
    ) -> Tensor:
        (gates,) = more
        token_positions, compressed = self.compressed(q, blocks, first, last)
        tokens, selected = self.selected(q, blocks, first, last, compressed)
        near, sliding = self.slid(q, blocks, first, last)
        branches = (
            weighted(self.dropped(compressed), gathered(blocks.means[1], token_positions)),
            weighted(self.dropped(selected), gathered(blocks.v, tokens)),
            weighted(self.dropped(sliding), gathered(blocks.v, near)),
        )
        return gated(branches, gates)

    def map_of(
        self, q: Tensor, blocks: Blocks, first: Tensor, last: Tensor, *more: Tensor
    ) -> Tensor:
        (gates,) = more
        keys = blocks.k.shape[2]
        token_positions, compressed = self.compressed(q, blocks, first, last)
        chosen, selected = self.selected(q, blocks, first, last, compressed)
        near, sliding = self.slid(q, blocks, first, last)
        # The weight of a mean is spread evenly over its block.
        numbers = torch.arange(token_positions.shape[3], device=q.device)[None, None, None]
        inside, _ = self.tokens(blocks, numbers, first, last)
        even = compressed.repeat_interleave(self.block, dim=-1) / self.block
        branches = (
            spread(even, inside, keys),
            spread(selected, chosen, keys),
            spread(sliding, near, keys),
        )
        return gated(branches, gates)

    def means_of(self, k: Tensor, v: Tensor, step: int) -> tuple[Tensor, ...]:
        return self.means(k, step), self.means(v, step)

    def compressed(
        self, q: Tensor, blocks: Blocks, first: Tensor, last: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Where the means of all blocks are [b|1 1 q|1 m]; their weights [b h q m]."""
        token_positions = self.resolve_positions(blocks, first)
        numbers = torch.arange(token_positions.shape[3], device=q.device)
        whole = numbers < ((last - first + 1) // self.block)[:, None, :, None]
        return token_positions, weigh(
            q, gathered(blocks.means[0], token_positions), whole, self.scale
        )

    def selected(
        self, q: Tensor, blocks: Blocks, first: Tensor, last: Tensor, compressed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The keys in the selected blocks [b g q n]; their weights [b h q n]."""
        own = self.own_block(first, last)
        numbers = torch.arange(compressed.shape[3], device=q.device)
        scores = compressed.detach().unflatten(1, (self.kv_heads, -1)).sum(dim=2)
        always = (numbers == 0) | (numbers == own - 1) | (numbers == own)
        scores = scores.masked_fill(numbers > own, float("-inf"))
        scores = scores.masked_fill(always, float("inf"))
        tokens, visible = self.tokens(blocks, largest(scores, self.blocks), first, last)
        return tokens, weigh(q, gathered(blocks.k, tokens), visible, self.scale)

    def slid(self, q: Tensor, blocks: Blocks, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """The keys near all of these queries [b|1 1 1 n]; their weights [b h q n]."""
        # From one query to the next the last key goes on by one at most.
        window_span = torch.arange(1 - self.sliding, q.shape[2], device=q.device)
        near = (last[:, :1] + window_span)[:, None, None]
        first, last = first[:, None, :, None], last[:, None, :, None]
        visible = (near >= first) & (near > last - self.sliding) & (near <= last)
        near = near.clamp(0, blocks.k.shape[2] - 1)
        return near, weigh(q, gathered(blocks.k, near), visible, self.scale)

    def naive_query(self, q: Tensor, k: Tensor, v: Tensor, **more: Tensor) -> Tensor:
        shared, length, rows = self.heads // self.kv_heads, k.shape[1], []
        own, whole = (length - 1) // self.block, length // self.block
        for group in range(self.kv_heads):
            heads = range(group * shared, (group + 1) * shared)
            keys, values = k[group].split(self.block), v[group].split(self.block)
            means = [
                part[group, : whole * self.block].unflatten(0, (whole, self.block)).mean(dim=1)
                for part in (k, v)
            ]
            p = [self.naive_weights_of(q[h], means[0]) for h in heads]
            scores = [sum(row[m].item() for row in p) for m in range(whole)]
            always = {m for m in (0, own - 1, own) if m >= 0}
            others = sorted((scores[m], m) for m in range(whole) if m not in always)[::-1]
            chosen = [*always, *(m for _, m in others[: self.blocks - len(always)])]
            selected = [torch.cat([part[m] for m in chosen]) for part in (keys, values)]
            near = [part[group, -self.sliding :] for part in (k, v)]
            for h in heads:
                branches = [
                    self.naive_weights_of(q[h], seen_keys) @ seen_values
                    for seen_keys, seen_values in (means, selected, near)
                ]
                rows.append(more["gates"][h] @ torch.stack(branches))
        return torch.stack(rows)

    def naive_weights_of(self, query: Tensor, keys: Tensor) -> Tensor:
        """Of a query [c] over keys [n c]: [n]."""
        return (keys @ query * self.scale).softmax(dim=0)


def gated(branches: tuple[Tensor, ...], gates: Tensor) -> Tensor:
    """The sum of branches [b h q …] times their gates [b h q 3]."""
    return (torch.stack(branches, dim=-1) * gates[..., None, :]).sum(dim=-1)
