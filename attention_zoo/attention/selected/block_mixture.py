"""Mixture of block attention, MoBA (Lu et al. 2025)."""

import torch
from torch import Tensor

from attention_zoo.attention.selected.blocks import BlockAttention, Blocks
from attention_zoo.attention.selected.topk_selection import (
    gathered,
    largest,
    products,
    spread,
    weigh,
    weighted,
)
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="block_mixture",
        paper="Lu et al. 2025, arXiv 2502.13189, §2.2",
        equation="softmax(q K[I]ᵀ/√c) V[I], I = own block and those with the largest q·mean(K)",
        reference="closed form",
        deviations="blocks are counted over the real tokens of each packed sequence; no window, "
        "which would cut blocks after their choice; no encoding on scores, which the choice would "
        "not know of; decoding makes the means of blocks anew from the cached keys",
        roles=("causal",),
        masks=("causal", "key_mask", "segment_ids"),
        positions=("positions", "embeddings", "heads"),
        cache="keys and values",
        decode_state="2·t·g·c",
        chooses="blocks of keys",
    )
)
class BlockMixtureAttention(BlockAttention):
    """Each head of each query attends to its own block, up to itself, and to the earlier blocks
    whose mean key is most like it:

        s_m = q · mean(K of block m),   I = own block and the blocks − 1 earlier ones of largest s_m

    The choice has no parameters, and no gradient: those of q and k come from the attention.
    The paper has blocks of 512 and up, and blocks = 3 (its top-k, which counts the own block).
    """

    always = 1

    def attend_some(
        self, q: Tensor, blocks: Blocks, first: Tensor, last: Tensor, *more: Tensor
    ) -> Tensor:
        tokens, weights = self.chosen(q, blocks, first, last)
        return weighted(self.dropped(weights), gathered(blocks.v, tokens))

    def map_of(
        self, q: Tensor, blocks: Blocks, first: Tensor, last: Tensor, *more: Tensor
    ) -> Tensor:
        tokens, weights = self.chosen(q, blocks, first, last)
        return spread(weights, tokens, blocks.k.shape[2])

    def means_of(self, k: Tensor, v: Tensor, step: int) -> tuple[Tensor, ...]:
        return (self.means(k.detach(), step),)

    def chosen(
        self, q: Tensor, blocks: Blocks, first: Tensor, last: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The keys in the chosen blocks, and their weights; both are [b h q n]."""
        with torch.no_grad():
            token_positions, own = (
                self.resolve_positions(blocks, first),
                self.own_block(first, last),
            )
            numbers = torch.arange(token_positions.shape[3], device=q.device)
            scores = products(q, gathered(blocks.means[0], token_positions))
            # Of later blocks, and of what is to come in the own one, a query must know nothing.
            scores = scores.masked_fill(numbers >= own, float("-inf"))
            scores = scores.masked_fill(numbers == own, float("inf"))
            tokens, visible = self.tokens(blocks, largest(scores, self.blocks), first, last)
        return tokens, weigh(q, gathered(blocks.k, tokens), visible, self.scale)

    def naive_query(self, q: Tensor, k: Tensor, v: Tensor, **more: Tensor) -> Tensor:
        shared = self.heads // self.kv_heads
        k, v = k.repeat_interleave(shared, dim=0), v.repeat_interleave(shared, dim=0)
        own = (k.shape[1] - 1) // self.block
        rows = []
        for head in range(self.heads):
            means = [block.mean(dim=0) for block in k[head].split(self.block)[:own]]
            scores = [(q[head] @ mean).item() for mean in means]
            order = sorted(range(own), key=lambda m: (scores[m], m), reverse=True)
            seen = [
                token
                for m in (*order[: self.blocks - 1], own)
                for token in range(m * self.block, min((m + 1) * self.block, k.shape[1]))
            ]
            weights = (k[head, seen] @ q[head] * self.scale).softmax(dim=0)
            rows.append(weights @ v[head, seen])
        return torch.stack(rows)
