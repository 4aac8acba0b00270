"""Longformer's attention: a sliding window, and global tokens (Beltagy et al. 2020)."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from attention_zoo.attention.local.blocks import BlockAttention, Blocks
from attention_zoo.attention.local.pattern import sequences
from attention_zoo.attention.online_softmax import (
    PartialSoftmax,
    concatenate,
    gathered,
    merge_partial,
    neighbouring_columns,
    scatter_blocks,
    split_into_blocks,
)
from attention_zoo.attention.softmax import Heads
from attention_zoo.backends.reference import masked_softmax, repeat_heads
from attention_zoo.caches import TokenCache
from attention_zoo.errors import UserError
from attention_zoo.masks import Mask, gather_columns, window_span
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="longformer",
        paper="Beltagy et al. 2020, arXiv 2004.05150, §3.1",
        equation="softmax(Q_s K_sᵀ/√c) V_s over a window and the global tokens; of these, "
        "softmax(Q_g K_gᵀ/√c) V_g over everything",
        reference="transformers LongformerSelfAttention",
        deviations="global tokens are the first of each sequence, where the paper chooses them by "
        "the task; the window counts oneself, W // 2 keys before and (W - 1) // 2 after, where "
        "theirs has W/2 on either side; the causal role, in which global tokens are seen by all "
        "later ones and see what is before them, is ours; a mask's window is refused, as it would "
        "cut off the global tokens; no cached decoding",
        roles=("causal", "global"),
        masks=("causal", "key_mask", "segment_ids"),
        positions=("positions", "embeddings", "heads", "width", "scores"),
        cost="t",
    )
)
class LongformerAttention(BlockAttention):
    """Attention to W neighbouring keys, and to and from a few global tokens.

    Every token sees its window and the global tokens, by one set of projections. A global token
    sees, and is compared with, all tokens of its sequence, by another.

    Args:
        window: W, the number of neighbouring keys that a query sees, itself included.
        global_tokens: how many are global: those at the first places of each sequence, counted
            from its first real token. Where it is causal, the first sees itself alone: then its
            query and key projections need a second one to learn anything.
    """

    def __init__(self, *, window: int, global_tokens: int, **options: Any) -> None:
        super().__init__(**options)
        if window < 1 or global_tokens < 1:
            raise UserError(
                "longformer needs a window of at least 1 (oneself) and at least 1 of "
                f"global_tokens, got window={window}, global_tokens={global_tokens}. "
                "sliding_window is the one without global tokens."
            )
        # How many keys before the query, and how many after it, are in the window.
        self.window_span = window_span(window, self.role == "causal")
        self.global_tokens = global_tokens
        like = {"bias": self.query.bias is not None}
        self.query_global = nn.Linear(self.dim, self.query.out_features, **like)
        self.key_global = nn.Linear(self.dim, self.key.out_features, **like)
        self.value_global = nn.Linear(self.dim, self.value.out_features, **like)

    def is_visible(self, query: Any, key: Any, length: Any) -> Any:
        before, after = self.window_span
        near = (query - key <= before) & (key - query <= after)
        seen = near | (key < self.global_tokens) | (query < self.global_tokens)
        return seen & (query >= 0)

    def heads_of(
        self,
        x: Tensor,
        context: Tensor | None,
        positions: Tensor | None,
        cache: TokenCache | None,
    ) -> Heads:
        """With the heads of the global projections beside the others."""
        heads = super().heads_of(x, context, positions, cache)
        split = "b t (h c) -> b h t c"
        q = rearrange(self.query_global(x), split, h=self.heads)
        k = rearrange(self.key_global(x), split, h=self.kv_heads)
        v = rearrange(self.value_global(x), split, h=self.kv_heads)
        q, k = self.position.rotate(q, k, heads.q_positions)
        return heads._replace(more={"query": q, "key": k, "value": v})

    def by_blocks(self, heads: Heads, mask: Mask, last: int) -> Tensor:
        starts = sequences(mask, last, heads.q.device).starts
        columns = torch.arange(last, device=heads.q.device)
        out = merge_partial([self.attend_blocks(heads, self.ordinary(mask, starts, columns), last)])
        token_positions = (columns - starts)[:, None, :, None]
        everything = merge_partial([self.of_global_tokens(heads, mask, starts, columns)])
        out = torch.where(self.is_global(token_positions), everything, out)
        return out.masked_fill(token_positions < 0, 0.0).to(heads.v.dtype)

    def by_pattern(self, heads: Heads, mask: Mask, last: int) -> Tensor:
        """By each set of projections what its own queries see; the others get zeros."""

        def ordinary(query: Any, key: Any, length: Any) -> Any:
            return self.is_visible(query, key, length) & ~self.is_global(query)

        def everything(query: Any, key: Any, length: Any) -> Any:
            return self.is_global(query)

        out = self.attend_pattern(heads, mask, last, ordinary)
        return out + self.attend_pattern(by_global_projections(heads), mask, last, everything)

    def is_global(self, token_positions: Any) -> Any:
        return (token_positions >= 0) & (token_positions < self.global_tokens)

    def ordinary(self, mask: Mask, starts: Tensor, columns: Tensor) -> Blocks:
        """The window of each query, and the global tokens outside of it.

        A query that has global tokens behind its window stands so far from its sequence's start
        that, in blocks no longer than that, the block's first column is of the same sequence.
        """
        length = len(columns)
        before, after = self.window_span
        queries = split_into_blocks(columns, before + 1)
        near = neighbouring_columns(queries, before, after)
        first = gather_columns(starts, queries[None, :, :1])
        far = first + torch.arange(self.global_tokens, device=columns.device)
        distance = queries[:, :, None] - near[:, :, None]
        in_window = (distance <= before) & (-distance <= after)
        behind = queries[:, :, None] - far[:, :, None] > before
        return Blocks(
            queries,
            concatenate(near, far, dim=2),
            concatenate(
                mask.gather(queries[None], near, length) & in_window,
                mask.gather(queries[None], far, length) & behind,
                dim=3,
            ),
        )

    def of_global_tokens(
        self, heads: Heads, mask: Mask, starts: Tensor, columns: Tensor
    ) -> PartialSoftmax:
        """What the global tokens of each sequence see, [b h n …]: all of it.

        Every block of keys is compared with the global tokens of its sequence. One block is as
        long as the row, or one token, where a row may hold many sequences.
        """
        length = len(columns)
        keys = split_into_blocks(columns, length if mask.segment_ids is None else 1)
        rows = gather_columns(starts, keys[None, :, :1])
        rows = rows + torch.arange(self.global_tokens, device=columns.device)
        inside = (rows < length)[..., None]
        heads = by_global_projections(heads)
        part = self.attend_gathered(
            gathered(heads.q, rows),
            gathered(heads.k, keys[None]),
            gathered(heads.v, keys[None]),
            gather_columns(heads.q_positions, rows),
            gather_columns(heads.k_positions, keys[None]),
            mask.gather(rows, keys[None], length) & inside,
        )
        return scatter_blocks(part, rows, length)

    def values(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        """Those of both projections, and the column at which the token's sequence starts.

        By that, `finish` finds the global tokens: weights add up to 1 within a sequence.
        """
        heads = self.heads_of(x, context, positions, None)
        starts = sequences(mask, x.shape[1], x.device).starts[:, None, :, None]
        both = [repeat_heads(v, self.heads) for v in (heads.v, heads.more["value"])]
        return torch.cat([*both, starts.expand_as(both[0][..., :1])], dim=-1)

    def finish(self, attended: Tensor, x: Tensor) -> Tensor:
        """Also of weighted sums of `values`, [b h q 2c+1]."""
        if attended.shape[-1] == self.head_dim:
            return super().finish(attended, x)
        ordinary, everything, starts = attended.split([self.head_dim, self.head_dim, 1], dim=-1)
        columns = torch.arange(x.shape[1], device=x.device)[:, None]
        chosen = self.is_global(columns - starts.round())
        return super().finish(torch.where(chosen, everything, ordinary), x)

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
        visible = self.pattern(mask, x.shape[1], x.device)
        starts = sequences(mask, x.shape[1], x.device).starts
        chosen = self.is_global(torch.arange(x.shape[1], device=x.device) - starts)
        return torch.where(
            chosen[:, None, :, None],
            self.weights(by_global_projections(heads), visible),
            self.weights(heads, visible),
        )

    def naive(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        visible: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Both softmaxes in full, of which each query takes its own.

        The first key that a query sees is the first token of its sequence, a global one.
        """
        heads = self.heads_of(x, context, positions, None)
        outputs = []
        for q, k, v, *_ in (heads, by_global_projections(heads)):
            k, v = repeat_heads(k, self.heads), repeat_heads(v, self.heads)
            scores = torch.einsum("bhqc,bhkc->bhqk", q, k) / self.head_dim**0.5
            bias = self.score_bias(heads, visible[:, None])
            scores = scores if bias is None else scores + bias
            outputs.append(masked_softmax(scores, visible[:, None]) @ v)
        first = visible.int().argmax(dim=-1)
        chosen = torch.arange(x.shape[1]) - first < self.global_tokens
        return self.finish(torch.where(chosen[:, None, :, None], outputs[1], outputs[0]), x)


def by_global_projections(heads: Heads) -> Heads:
    """Queries, keys and values as the global tokens use them."""
    more = heads.more
    return heads._replace(q=more["query"], k=more["key"], v=more["value"])
