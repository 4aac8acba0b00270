"""Native sparse attention, NSA (Yuan et al. 2025)."""

import math
from itertools import product
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from attention_zoo.attention.naive import linear, rank, rotate_heads
from attention_zoo.attention.selected.topk_blocks import (
    KeyBlocks,
    RangeQueries,
    TopKBlockAttention,
)
from attention_zoo.attention.selected.topk_selection import (
    gather_selected,
    scatter_weights,
    select_largest,
    sum_values,
    weigh_keys,
)
from attention_zoo.attention.softmax import QKV
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
        "window, which would cut blocks; no encoding on scores, as a block has no position; "
        "decoding computes the means of blocks anew from the cached keys and values",
        roles=("causal",),
        masks=("causal", "key_mask", "segment_ids"),
        positions=("positions", "embeddings", "heads"),
        cache="keys and values",
        weights="nonnegative",
        chooses="blocks of keys",
    )
)
class NativeSparseAttention(TopKBlockAttention):
    """Three views of the past, each with a gate of sigmoid(W x) for every head.

        compressed: the means of K and V over each block that is whole, with weights p
        selected: all keys of the blocks with the largest p, summed over the heads of a group
        sliding: the last `window` keys

    The first block, the query's own block, up to the query, and the block before it are always
    selected, and count among `blocks`. The paper has block = 64, blocks = 16 and window = 512.

    Args:
        window: number of keys that the sliding branch sees, the query's own included.
        kv_heads: number of key/value heads; the query heads that share one select the same blocks.
    """

    fixed_blocks = 3

    def __init__(self, *, window: int, kv_heads: int | None = 2, **options: Any) -> None:
        super().__init__(kv_heads=kv_heads, **options)
        if window < 1:
            raise UserError(f"window must be at least 1 (the query itself), got {window}.")
        # Not `self.window`, which would narrow all three branches.
        self.sliding_window = window
        self.gate = nn.Linear(self.dim, 3 * self.heads, bias=False)

    def project_qkv(
        self, x: Tensor, context: Tensor | None, positions: Tensor, cache: TokenCache | None
    ) -> QKV:
        gates = rearrange(self.gate(x).sigmoid(), "b q (h n) -> b h q n", h=self.heads)
        qkv = super().project_qkv(x, context, positions, cache)
        return qkv._replace(features={"gates": gates})

    def attend_blocks(self, queries: RangeQueries, blocks: KeyBlocks) -> Tensor:
        sources = (blocks.means[1], blocks.v, blocks.v)
        branches = [
            sum_values(self.drop_weights(weights), gather_selected(values, indices))
            for (indices, weights), values in zip(
                self.weigh_branches(queries, blocks), sources, strict=True
            )
        ]
        return sum_branches(branches, queries.features["gates"])

    def weigh_blocks(self, queries: RangeQueries, blocks: KeyBlocks) -> Tensor:
        (means, block_weights), *branches = self.weigh_branches(queries, blocks)
        # The weight of a mean belongs to the tokens of its block in equal parts.
        numbers = torch.arange(means.shape[3], device=means.device)[None, None, None]
        tokens, _ = self.find_tokens(queries, blocks, numbers)
        weights = block_weights.repeat_interleave(self.block, dim=-1) / self.block
        keys = blocks.k.shape[2]
        maps = [scatter_weights(w, indices, keys) for indices, w in ((tokens, weights), *branches)]
        return sum_branches(maps, queries.features["gates"])

    def weigh_branches(
        self, queries: RangeQueries, blocks: KeyBlocks
    ) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return the indices and the weights of the compressed, selected and sliding branch."""
        compressed = self.weigh_compressed(queries, blocks)
        selected = self.weigh_selected(queries, blocks, compressed[1])
        return compressed, selected, self.weigh_sliding(queries, blocks)

    def compute_means(self, k: Tensor, v: Tensor, step: int) -> tuple[Tensor, ...]:
        return self.average_blocks(k, step), self.average_blocks(v, step)

    def weigh_compressed(self, queries: RangeQueries, blocks: KeyBlocks) -> tuple[Tensor, Tensor]:
        """Return the indices of the means of all blocks [b|1 1 q|1 m]; their weights [b h q m]."""
        indices = self.find_means(queries, blocks)
        numbers = torch.arange(indices.shape[3], device=indices.device)
        lengths = (queries.last - queries.first + 1)[:, None, :, None]
        is_whole = numbers < lengths // self.block
        keys = gather_selected(blocks.means[0], indices)
        return indices, weigh_keys(queries.q, keys, is_whole, self.scale)

    def weigh_selected(
        self, queries: RangeQueries, blocks: KeyBlocks, block_weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the keys in the selected blocks [b g q n]; their weights [b h q n]."""
        own_block = self.find_own_block(queries)
        numbers = torch.arange(block_weights.shape[3], device=own_block.device)
        scores = block_weights.detach().unflatten(1, (self.kv_heads, -1)).sum(dim=2)
        is_fixed = (numbers == 0) | (numbers == own_block - 1) | (numbers == own_block)
        scores = scores.masked_fill(numbers > own_block, float("-inf"))
        scores = scores.masked_fill(is_fixed, float("inf"))
        tokens, visible = self.find_tokens(queries, blocks, select_largest(scores, self.blocks))
        keys = gather_selected(blocks.k, tokens)
        return tokens, weigh_keys(queries.q, keys, visible, self.scale)

    def weigh_sliding(self, queries: RangeQueries, blocks: KeyBlocks) -> tuple[Tensor, Tensor]:
        """Return the keys in the windows of all queries [b|1 1 1 n]; their weights [b h q n]."""
        # From one query to the next the last key moves by one at most.
        steps = torch.arange(1 - self.sliding_window, queries.q.shape[2], device=queries.q.device)
        tokens = (queries.last[:, :1] + steps)[:, None, None]
        first, last = queries.first[:, None, :, None], queries.last[:, None, :, None]
        visible = (tokens >= first) & (tokens > last - self.sliding_window) & (tokens <= last)
        tokens = tokens.clamp(0, blocks.k.shape[2] - 1)
        return tokens, weigh_keys(queries.q, gather_selected(blocks.k, tokens), visible, self.scale)

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Compute the branches for one query and one group of heads at a time."""
        q, k, v = self.naive_qkv(x, source)
        q = rotate_heads(self.position, q, positions, of="query")
        k = rotate_heads(self.position, k, positions, of="key")
        gates = torch.sigmoid(linear(self.gate, x)).unflatten(-1, (self.heads, 3))
        attended = torch.zeros_like(q)
        for b, i, heads in product(range(len(x)), range(x.shape[1]), self.naive_groups()):
            seen = visible[b, i].nonzero()[:, 0]
            if len(seen) == 0:
                continue
            keys, values = k[b, heads[0], seen], v[b, heads[0], seen]
            tokens, whole = torch.arange(len(seen)).split(self.block), len(seen) // self.block
            means = [
                part[: whole * self.block].unflatten(0, (whole, self.block)).mean(dim=1)
                for part in (keys, values)
            ]
            p = torch.stack([self.naive_softmax(q[b, h, i], means[0]) for h in heads]).sum(dim=0)
            own_block = len(tokens) - 1
            fixed = {m for m in (0, own_block - 1, own_block) if m >= 0}
            others = [m for m in rank(p.tolist()) if m not in fixed]
            blocks = [*fixed, *others[: self.blocks - len(fixed)]]
            selected = torch.cat([tokens[m] for m in blocks])
            branches = (
                means,
                (keys[selected], values[selected]),
                (keys[-self.sliding_window :], values[-self.sliding_window :]),
            )
            for h in heads:
                outputs = [self.naive_softmax(q[b, h, i], part[0]) @ part[1] for part in branches]
                attended[b, h, i] = gates[b, i, h] @ torch.stack(outputs)
        return self.naive_output(attended, x)

    def naive_groups(self) -> list[range]:
        """Return the heads of each group, which share keys and values."""
        size = self.heads // self.kv_heads
        return [range(start, start + size) for start in range(0, self.heads, size)]

    def naive_softmax(self, query: Tensor, keys: Tensor) -> Tensor:
        """Return the weights [n] of a query [c] for keys [n c]."""
        return torch.softmax(keys @ query / math.sqrt(self.head_dim), dim=0)


def sum_branches(branches: list[Tensor], gates: Tensor) -> Tensor:
    """Sum branches [b h q …], each times its gate [b h q 3]."""
    return (torch.stack(branches, dim=-1) * gates[..., None, :]).sum(dim=-1)
