"""Strided sparse attention (Child et al. 2019)."""

from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.local.block_sparse import BlockSparseAttention, GatheredBlocks
from attention_zoo.attention.online_softmax import (
    extend_blocks,
    merge_partial_softmax,
    split_into_blocks,
)
from attention_zoo.attention.softmax import QKV
from attention_zoo.errors import UserError
from attention_zoo.masks import Mask, Visibility
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="strided_sparse",
        paper="Child et al. 2019, arXiv 1904.10509, §4.3 (strided), §5.1 (merged head)",
        equation="softmax(QKᵀ/√c) V over the keys with i − j < l or (i − j) mod l = 0",
        reference="closed form",
        deviations="every head is a merged one, over both sets of keys in one softmax; without "
        "causality the distance is |i − j|, which the paper does not have; no layout for images",
        roles=("causal", "global"),
        masks=("causal", "window", "key_mask", "segment_ids"),
        positions=("positions", "embeddings", "heads", "width", "scores"),
        cache="keys and values",
    )
)
class StridedSparseAttention(BlockSparseAttention):
    """Attention to the l nearest keys, and to every l-th key beyond them.

    The near keys are gathered for blocks of neighbouring queries. The distant keys are gathered for
    the queries whose columns leave the same remainder modulo l, which share them. With n tokens
    that takes work and memory for n·(2·l + n/l) scores: least where l is about √n.

    Args:
        stride: l, in tokens.
    """

    def __init__(self, *, stride: int, **options: Any) -> None:
        super().__init__(**options)
        if stride < 1:
            raise UserError(f"stride must be at least 1 (every key), got {stride}.")
        self.stride = stride

    def is_visible(self, query: Any, key: Any, length: Any) -> Any:
        distance = abs(query - key)
        return (distance < self.stride) | (distance % self.stride == 0)

    def attend_by_blocks(self, qkv: QKV, visible: Visibility) -> Tensor:
        rows = visible.rows
        columns = torch.arange(rows.start, rows.stop, device=qkv.q.device)
        parts = [
            self.attend_blocks(qkv, gather(visible.mask, columns, rows.stop), rows.stop)
            for gather in (self.gather_near_keys, self.gather_distant_keys)
        ]
        return merge_partial_softmax(parts).to(qkv.v.dtype)

    def gather_near_keys(self, mask: Mask, columns: Tensor, length: int) -> GatheredBlocks:
        """Gather the keys at less than a stride from queries at these columns."""
        queries = split_into_blocks(columns, min(self.stride, len(columns)))
        keys = extend_blocks(queries, self.stride - 1, 0 if mask.causal else self.stride - 1)
        distance = queries[:, :, None] - keys[:, :, None]
        visible = mask.gather(queries[None], keys, length) & (distance.abs() < self.stride)
        return GatheredBlocks(queries, keys, visible)

    def gather_distant_keys(self, mask: Mask, columns: Tensor, length: int) -> GatheredBlocks:
        """Gather the keys at one, two, … strides from queries at these columns."""
        queries = split_into_blocks(columns, self.stride)[:, : len(columns)].T
        steps = torch.arange(-(-length // self.stride), device=columns.device)
        keys = (queries[:, :1] % self.stride + self.stride * steps)[None]
        distance = queries[:, :, None] - keys[:, :, None]
        visible = mask.gather(queries[None], keys, length) & (distance != 0)
        return GatheredBlocks(queries, keys, visible)
