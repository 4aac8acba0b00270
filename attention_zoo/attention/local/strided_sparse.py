"""Strided sparse attention (Child et al. 2019)."""

from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.local.pattern import BlockSparseAttention
from attention_zoo.attention.online_softmax import (
    extend_blocks,
    merge_partial_softmax,
    split_into_blocks,
)
from attention_zoo.attention.softmax import QKV, register_softmax
from attention_zoo.errors import check_positive
from attention_zoo.masks import Visibility


@register_softmax(
    name="strided_sparse",
    also_called=("sparse_transformer",),
    paper="Child et al. 2019, arXiv 1904.10509, §4.3 (strided), §5.1 (merged head)",
    equation="softmax(QKᵀ/√c) V over the keys with i − j < l or (i − j) mod l = 0",
    reference="closed form",
    deviations="every head is a merged one, over both sets of keys in one softmax; without "
    "causality the distance is |i − j|, which the paper does not have; no layout for images",
    roles=("causal", "global"),
    masks=("causal", "window", "key_mask", "segment_ids"),
    positions=("positions", "embeddings", "heads", "width", "scores"),
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
        check_positive(stride=stride)
        self.stride = stride

    def is_visible(self, query: Any, key: Any, length: Any) -> Any:
        distance = abs(query - key)
        return (distance < self.stride) | (distance % self.stride == 0)

    def attend_by_blocks(self, qkv: QKV, visible: Visibility) -> Tensor:
        mask, rows, stride = visible.mask, visible.rows, self.stride
        columns = torch.arange(rows.start, rows.stop, device=qkv.q.device)
        near_queries = split_into_blocks(columns, min(stride, qkv.q.shape[2]))
        near_keys = extend_blocks(near_queries, stride - 1, 0 if mask.causal else stride - 1)
        is_near = (near_queries[:, :, None] - near_keys[:, :, None]).abs() < stride
        # The queries whose columns leave the same remainder share the keys one, two, … strides off.
        queries = split_into_blocks(columns, stride)[:, : qkv.q.shape[2]].T
        steps = torch.arange(-(-rows.stop // stride), device=columns.device)
        keys = (queries[:, :1] % stride + stride * steps)[None]
        is_other = queries[:, :, None] != keys[:, :, None]
        parts = [
            self.attend_blocks(qkv, mask, rows.stop, near_queries, (near_keys, is_near)),
            self.attend_blocks(qkv, mask, rows.stop, queries, (keys, is_other)),
        ]
        return merge_partial_softmax(parts).to(qkv.v.dtype)
