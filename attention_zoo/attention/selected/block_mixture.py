"""Mixture of block attention, MoBA (Lu et al. 2025)."""

import torch
from torch import Tensor

from attention_zoo.attention.naive import rank
from attention_zoo.attention.selected.topk_blocks import TopKBlockAttention, UnpaddedQKV
from attention_zoo.attention.selected.topk_selection import (
    gather_selected,
    scatter_weights,
    score_keys,
)
from attention_zoo.attention.softmax import register_softmax


@register_softmax(
    name="block_mixture",
    also_called=("moba",),
    paper="Lu et al. 2025, arXiv 2502.13189, §2.2",
    equation="softmax(q K[I]ᵀ/√c) V[I], I = own block and those with the largest q·mean(K)",
    reference="closed form",
    deviations="blocks are counted over the real tokens of each packed sequence; no window, which "
    "would cut blocks after their selection; no encoding on scores, which the selection would "
    "ignore; decoding computes the means of blocks anew from the cached keys",
    roles=("causal",),
    masks=("causal", "key_mask", "segment_ids"),
    positions=("positions", "embeddings", "heads"),
    chooses="blocks of keys",
)
class BlockMixtureAttention(TopKBlockAttention):
    """Attention to the query's own block, up to itself, and to the earlier blocks it is most like.

        s_m = q · mean(K of block m),   I = own block and the blocks − 1 earlier ones of largest s_m

    Each head of each query selects. The selection has no parameters and no gradient: q and k learn
    by the attention. The paper has blocks of 512 and up, and blocks = 3 (its top-k, which counts
    the own block).
    """

    # It would cut off the blocks.
    decided_options = ("window",)
    fixed_blocks = 1

    def attend_blocks(self, qkv: UnpaddedQKV) -> Tensor:
        tokens, weights = self.weigh_tokens(qkv)
        return self.sum_selected(weights, qkv.v, tokens)

    def weigh_blocks(self, qkv: UnpaddedQKV) -> Tensor:
        tokens, weights = self.weigh_tokens(qkv)
        return scatter_weights(weights, tokens, qkv.k.shape[2])

    def compute_block_means(self, k: Tensor, v: Tensor, step: int) -> tuple[Tensor, ...]:
        return (self.average_blocks(k.detach(), step),)

    def weigh_tokens(self, qkv: UnpaddedQKV) -> tuple[Tensor, Tensor]:
        """Return the keys in the selected blocks, and their weights; both are [b h q n]."""
        with torch.no_grad():
            scores = score_keys(qkv.q, gather_selected(qkv.means[0], self.find_means(qkv)))
            query_block = self.find_query_block(qkv)
            numbers = torch.arange(scores.shape[3], device=scores.device)
            # The query's own block holds later keys: its mean must not be used.
            scores = scores.masked_fill(numbers >= query_block, float("-inf"))
            scores = scores.masked_fill(numbers == query_block, float("inf"))
        return self.weigh_best_blocks(qkv, scores)

    def naive_weights(self, head: int, scores: Tensor) -> Tensor:
        """Compute the softmax over blocks; q · mean(K) is the mean of q · k over a block."""
        *earlier, last = torch.arange(len(scores)).split(self.block)
        best = rank([scores[block].mean().item() for block in earlier])
        selected = torch.cat([*(earlier[m] for m in best[: self.blocks - 1]), last])
        weights = torch.zeros_like(scores)
        weights[selected] = super().naive_weights(head, scores[selected])
        return weights
