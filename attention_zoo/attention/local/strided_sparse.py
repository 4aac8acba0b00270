"""Strided sparse attention (Child et al. 2019)."""

from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.local.blocks import BlockAttention, Blocks
from attention_zoo.attention.online_softmax import (
    merge_partial,
    neighbouring_columns,
    split_into_blocks,
)
from attention_zoo.attention.softmax import Heads
from attention_zoo.errors import UserError
from attention_zoo.masks import Mask
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
        decode_state="2·t·g·c",
    )
)
class StridedSparseAttention(BlockAttention):
    """Attention to the l nearest keys, and to every l-th one beyond them.

    The near keys are gathered for blocks of neighbouring queries; the far ones for the queries
    whose places leave the same rest by l, which share them. With n tokens that is work and memory
    for n·(2·l + n/l) scores: least where l is about √n.

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

    def by_blocks(self, heads: Heads, mask: Mask, last: int) -> Tensor:
        columns = torch.arange(last - heads.q.shape[2], last, device=heads.q.device)
        near = self.attend_blocks(heads, self.near(mask, columns, last), last)
        far = self.attend_blocks(heads, self.far(mask, columns, last), last)
        return merge_partial([near, far]).to(heads.v.dtype)

    def near(self, mask: Mask, columns: Tensor, last: int) -> Blocks:
        """Of queries at these columns, the keys at less than a stride."""
        queries = split_into_blocks(columns, min(self.stride, len(columns)))
        keys = neighbouring_columns(queries, self.stride - 1, 0 if mask.causal else self.stride - 1)
        distance = queries[:, :, None] - keys[:, :, None]
        visible = mask.gather(queries[None], keys, last) & (distance.abs() < self.stride)
        return Blocks(queries, keys, visible)

    def far(self, mask: Mask, columns: Tensor, last: int) -> Blocks:
        """The keys at one, two, … strides."""
        queries = split_into_blocks(columns, self.stride)[:, : len(columns)].T
        steps = torch.arange(-(-last // self.stride), device=columns.device)
        keys = (queries[:, :1] % self.stride + self.stride * steps)[None]
        distance = queries[:, :, None] - keys[:, :, None]
        visible = mask.gather(queries[None], keys, last) & (distance != 0)
        return Blocks(queries, keys, visible)
