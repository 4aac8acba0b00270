"""Longformer's attention: a sliding window, and global tokens (Beltagy et al. 2020)."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from attention_zoo.attention.local.pattern import BlockSparseAttention, add_pattern, find_sequences
from attention_zoo.attention.naive import linear_heads, repeat_groups, softmax
from attention_zoo.attention.online_softmax import (
    PartialSoftmax,
    extend_blocks,
    merge_partial_softmax,
    split_into_blocks,
)
from attention_zoo.attention.softmax import QKV, SoftmaxAttention, register_softmax
from attention_zoo.backends.reference import repeat_heads
from attention_zoo.caches import TokenCache
from attention_zoo.errors import UserError, check_positive
from attention_zoo.masks import Mask, Visibility, gather_columns, window_span


@register_softmax(
    name="longformer",
    paper="Beltagy et al. 2020, arXiv 2004.05150, §3.1",
    equation="softmax(Q_s K_sᵀ/√c) V_s over a window and the global tokens; of these, softmax(Q_g "
    "K_gᵀ/√c) V_g over everything",
    reference="transformers LongformerSelfAttention",
    deviations="global tokens are the first of each sequence, where the paper chooses them by the "
    "task; the window counts the query itself, W // 2 keys before and (W - 1) // 2 after, where "
    "theirs has W/2 on either side; the causal role, in which global tokens are seen by all later "
    "ones and see all earlier ones, is ours; a mask's window is refused, as it would cut off the "
    "global tokens; no cached decoding",
    roles=("causal", "global"),
    masks=("causal", "key_mask", "segment_ids"),
    positions=("positions", "embeddings", "heads", "width", "scores"),
    cache="",
    cost="t",
)
class LongformerAttention(BlockSparseAttention):
    """Attention to W neighbouring keys, and to and from a few global tokens.

    Every token sees its window and the global tokens, by one set of projections. A global token
    sees all tokens of its sequence, by another set, which also projects their keys and values.

    Args:
        window: W, the number of neighbouring keys that a query sees, itself included.
        global_tokens: number of global tokens: the first ones of each sequence, counted from its
            first real token. In causal attention the first one sees itself alone. So the global
            query and key projections learn only if there are at least two.
    """

    token_projections = ("query", "key", "value", "query_global", "key_global", "value_global")

    def __init__(self, *, window: int, global_tokens: int, **options: Any) -> None:
        super().__init__(**options)
        check_positive(window=window)
        if global_tokens < 1:
            raise UserError(
                f"global_tokens must be at least 1, got {global_tokens}. sliding_window is the one "
                "without global tokens."
            )
        # Number of keys in the window before a query, and after it.
        self.before, self.after = window_span(window, self.role == "causal")
        self.global_tokens = global_tokens
        bias = self.query.bias is not None
        self.query_global = nn.Linear(self.dim, self.query.out_features, bias=bias)
        self.key_global = nn.Linear(self.dim, self.key.out_features, bias=bias)
        self.value_global = nn.Linear(self.dim, self.value.out_features, bias=bias)

    def is_visible(self, query: Any, key: Any, length: Any) -> Any:
        in_window = (query - key <= self.before) & (key - query <= self.after)
        seen = in_window | (key < self.global_tokens) | (query < self.global_tokens)
        return seen & (query >= 0)

    def is_global(self, index: Any) -> Any:
        """Return whether the token at an index of a sequence is global."""
        return (index >= 0) & (index < self.global_tokens)

    def project_qkv(
        self, x: Tensor, context: Tensor | None, positions: Tensor, cache: TokenCache | None
    ) -> QKV:
        """Project by both sets; `features` holds the results of the global one."""
        qkv = super().project_qkv(x, context, positions, cache)
        q = rearrange(self.query_global(x), "b t (h c) -> b h t c", h=self.heads)
        k = rearrange(self.key_global(x), "b t (g c) -> b g t c", g=self.kv_heads)
        v = self.project_global_value(x)
        q, k = self.apply_position(q, k, positions)
        return qkv._replace(features={"query": q, "key": k, "value": v})

    def project_global_value(self, source: Tensor) -> Tensor:
        """Project inputs [b k d] to the values [b g k c] that global tokens see."""
        return rearrange(self.value_global(source), "b k (g c) -> b g k c", g=self.kv_heads)

    def attend_by_pattern(self, qkv: QKV, visible: Visibility) -> Tensor:
        # Queries of the other kind see nothing, and get zeros.
        ordinary = add_pattern(
            qkv, visible, lambda i, j, n: self.is_visible(i, j, n) & ~self.is_global(i)
        )
        everything = add_pattern(qkv, visible, lambda i, j, n: self.is_global(i))
        attended = SoftmaxAttention.attend(self, qkv, ordinary)
        return attended + SoftmaxAttention.attend(self, select_global(qkv), everything)

    def attend_by_blocks(self, qkv: QKV, visible: Visibility) -> Tensor:
        mask, length = visible.mask, visible.rows.stop
        starts, _ = find_sequences(mask, length, qkv.q.device)
        columns = torch.arange(length, device=qkv.q.device)
        ordinary = merge_partial_softmax([self.attend_window(qkv, mask, starts, columns)])
        # Keys are blocks of one token, where a row may hold several sequences.
        keys = split_into_blocks(columns, length if mask.segment_ids is None else 1)
        count = self.global_tokens
        part = self.attend_from_first(select_global(qkv), mask, starts, count, keys, True)
        indices = (columns - starts)[:, None, :, None]
        out = torch.where(self.is_global(indices), merge_partial_softmax([part]), ordinary)
        return out.masked_fill(indices < 0, 0.0).to(qkv.v.dtype)

    def attend_window(
        self, qkv: QKV, mask: Mask, starts: Tensor, columns: Tensor
    ) -> PartialSoftmax:
        """Attend from each query to its window, and to the global tokens before it.

        A query with global tokens before its window is far from the start of its sequence. So, in
        blocks no longer than the window, the block's first column is of the same sequence.
        """
        queries = split_into_blocks(columns, self.before + 1)
        near_keys = extend_blocks(queries, self.before, self.after)
        start = gather_columns(starts, queries[None, :, :1])
        global_keys = start + torch.arange(self.global_tokens, device=columns.device)
        distance = queries[:, :, None] - near_keys[:, :, None]
        in_window = (distance <= self.before) & (-distance <= self.after)
        is_before = queries[:, :, None] - global_keys[:, :, None] > self.before
        parts = (near_keys, in_window), (global_keys, is_before)
        return self.attend_blocks(qkv, mask, len(columns), queries, *parts)

    def weights(self, qkv: QKV, visible: Visibility) -> Tensor:
        is_global = self.find_global_tokens(visible.mask, visible.rows.stop, qkv.q.device)
        everything = super().weights(select_global(qkv), visible)
        return torch.where(is_global, everything, super().weights(qkv, visible))

    def compute_values(self, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        """Return the values of both projections, and a channel that is 1 at global tokens."""
        ordinary = super().compute_values(source, mask, positions)
        everything = repeat_heads(self.project_global_value(source), self.heads)
        is_global = self.find_global_tokens(mask, source.shape[1], source.device)
        is_global = is_global.to(ordinary.dtype).expand_as(ordinary[..., :1])
        return torch.cat([ordinary, everything, is_global], dim=-1)

    def apply_weights(self, weights: Tensor, values: Tensor) -> Tensor:
        """Apply the weights of each query to the values of its own projection."""
        ordinary, everything, is_global = values.split([self.head_dim, self.head_dim, 1], dim=-1)
        return torch.where(is_global > 0, weights @ everything, weights @ ordinary)

    def find_global_tokens(self, mask: Mask, length: int, device: torch.device) -> Tensor:
        """Return [b|1 1 n 1], true at the global tokens of rows of `length` columns."""
        starts, _ = find_sequences(mask, length, device)
        indices = torch.arange(length, device=device) - starts
        return self.is_global(indices)[:, None, :, None]

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Compute both softmaxes in full, and choose for each query.

        The first key that a query sees is the first token of its sequence, a global one.
        """
        global_qkv = (
            linear_heads(self.query_global, x, self.heads),
            repeat_groups(linear_heads(self.key_global, source, self.kv_heads), self.heads),
            repeat_groups(linear_heads(self.value_global, source, self.kv_heads), self.heads),
        )
        attended = []
        for q, k, v in (self.naive_qkv(x, source), global_qkv):
            scores = self.naive_score_matrix(q, k, source, visible, positions)
            attended.append(softmax(scores, visible) @ v)
        ordinary, everything = attended
        first = visible.int().argmax(dim=-1)
        is_global = (torch.arange(x.shape[1]) - first < self.global_tokens)[:, None, :, None]
        return self.naive_output(torch.where(is_global, everything, ordinary), x)


def select_global(qkv: QKV) -> QKV:
    """Return the queries, keys and values of the global projections."""
    features = qkv.features
    return qkv._replace(q=features["query"], k=features["key"], v=features["value"])
