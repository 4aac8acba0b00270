"""DeepSeek sparse attention and its lightning indexer (DeepSeek-AI 2025)."""

from dataclasses import replace
from itertools import product
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from attention_zoo.attention.naive import linear, linear_heads, rank, rotate_heads
from attention_zoo.attention.selected.indexer import (
    average_real,
    index_divergence,
    score_index,
    warn_if_untaken,
)
from attention_zoo.attention.selected.topk_selection import (
    TopKSelectionAttention,
    gather_selected,
    scatter_weights,
    select_largest,
    split_queries,
    weigh_keys,
)
from attention_zoo.attention.softmax import QKV, register_softmax
from attention_zoo.caches import TokenCache
from attention_zoo.checkpointing import checkpoint
from attention_zoo.errors import check_positive
from attention_zoo.masks import Columns, Visibility


@register_softmax(
    name="lightning_indexer",
    also_called=("dsa", "deepseek_sparse"),
    paper="DeepSeek-AI 2025, arXiv 2512.02556 (DeepSeek-V3.2)",
    equation="softmax(q K[S]ᵀ/√c) V[S], S = top-k of Σ_j w_j ReLU(q_j·k), j over indexer heads",
    reference="flash-linear-attention naive_dsa",
    deviations="over grouped heads instead of latent attention; trained from the start by the "
    "sparse stage's loss, without the dense warm-up; indexer heads are as wide as the others and "
    "take the same encoding of heads, and no low-rank query, norm, Hadamard rotation or 8-bit "
    "numbers as in the authors' code, but its scale, 1/√(c·heads); of equal scores the latest key "
    "is selected. Every query scores all of its past, so the work of the indexer grows with "
    "length², though not the memory; no encoding on scores, which the selection would ignore",
    roles=("causal",),
    masks=("causal", "window", "key_mask", "segment_ids"),
    positions=("positions", "embeddings", "heads"),
    cache="keys, values, and a key of the indexer",
    chooses="keys",
)
class LightningIndexerAttention(TopKSelectionAttention):
    """Small indexer heads score all keys, and all other heads attend to the best of them.

        I_ts = Σ_j w_tj ReLU(q_tj · k_s),   S_t = top_k of I_t over the visible keys
        out_t = softmax(q_t K[S_t]ᵀ/√c) V[S_t]

    The selection has no gradient. The indexer learns by a loss of its own, from x detached,

        KL(p_t ‖ softmax(I_t[S_t])),   p_t = the mean over heads of the weights on S_t, detached,

    whose mean over real tokens is `auxiliary_loss` in training, which `take_auxiliary_loss` adds up
    over a model. The model's loss does not reach the indexer, nor that loss the model. A backward
    pass warns if the loss was not taken. The paper has top_k = 2048.

    Args:
        top_k: largest number of keys that a query attends to.
        index_heads: number of indexer heads, which share one key.
    """

    def __init__(self, *, top_k: int, index_heads: int = 4, **options: Any) -> None:
        super().__init__(**options)
        check_positive(top_k=top_k, index_heads=index_heads)
        self.top_k = top_k
        self.index_heads = index_heads
        self.index_query = nn.Linear(self.dim, index_heads * self.head_dim, bias=False)
        self.index_key = nn.Linear(self.dim, self.head_dim, bias=False)
        self.index_weight = nn.Linear(self.dim, index_heads, bias=False)

    def decode_state(self, tokens: int) -> int:
        return super().decode_state(tokens) + self.cached_tokens(tokens) * self.head_dim

    def project_query(self, x: Tensor) -> Tensor:
        """Project to [b h+j q c]: the j indexer heads come last, and are rotated likewise."""
        index = self.index_query(x.detach())
        index = rearrange(index, "b q (j c) -> b j q c", j=self.index_heads)
        return torch.cat([super().project_query(x), index], dim=1)

    def project_key_value(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Project to keys [b g+1 k c], of which the indexer's comes last, and values [b g k c]."""
        k, v = super().project_key_value(source)
        return torch.cat([k, self.index_key(source.detach())[:, None]], dim=1), v

    def project_qkv(
        self, x: Tensor, context: Tensor | None, positions: Tensor, cache: TokenCache | None
    ) -> QKV:
        weights = self.index_weight(x.detach())[:, None]
        qkv = super().project_qkv(x, context, positions, cache)
        return qkv._replace(features={"weights": weights})

    def attend(self, qkv: QKV, visible: Visibility) -> Tensor:
        queries, v = qkv.q.shape[2], qkv.v.contiguous()
        parts = []
        for part in split_queries(queries, self.top_k):
            weights = qkv.features["weights"][:, :, part]
            qkv_part = qkv._replace(q=qkv.q[:, :, part], v=v, features={"weights": weights})
            tokens, seen = self.select_keys(
                qkv_part, replace(visible, rows=visible.rows.select(part))
            )
            parts.append(checkpoint(self.attend_selected, qkv_part, tokens, seen))
        outputs, divergences = zip(*parts, strict=True)
        self.auxiliary_loss = None
        if self.training:
            self.auxiliary_loss = average_real(torch.cat(divergences, dim=1), visible.mask)
        out = torch.cat(outputs, dim=2)
        warn_if_untaken(out, self.auxiliary_loss, self.card.name)
        return out

    def attend_selected(self, qkv: QKV, tokens: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Attend from queries to the keys [b 1 q n] that they selected, where these are seen.

        Returns:
            The weighted sums of values [b h q c], and the divergence [b q]; zeros in evaluation.
        """
        keys = gather_selected(qkv.k, tokens)
        weights = weigh_keys(qkv.q[:, : self.heads], keys[:, :-1], seen, self.scale)
        out = self.sum_selected(weights, qkv.v, tokens)
        if not self.training:
            return out, torch.zeros_like(out[:, 0, :, 0])
        return out, index_divergence(weights, self.score_index(qkv, keys[:, -1:]), seen)

    def weights(self, qkv: QKV, visible: Visibility) -> Tensor:
        tokens, seen = self.select_keys(qkv, visible)
        weights = self.weigh_selected(qkv.q[:, : self.heads], qkv.k[:, :-1], tokens, seen)
        return scatter_weights(weights, tokens, qkv.k.shape[2])

    @torch.no_grad()
    def select_keys(self, qkv: QKV, visible: Visibility) -> tuple[Tensor, Tensor]:
        """Return the keys that queries select [b 1 q n], and which of them are visible."""
        first, stop = visible.columns.start, visible.rows.stop
        scores = self.score_index(qkv, qkv.k[:, -1:, None, : stop - first])
        seen = replace(visible, columns=Columns(first, stop)).dense(scores.device)
        if seen is None:
            seen = torch.ones_like(scores[:1], dtype=torch.bool)
        tokens = select_largest(scores.masked_fill(~seen, float("-inf")), self.top_k)
        return tokens, seen.expand_as(scores).gather(3, tokens)

    def score_index(self, qkv: QKV, keys: Tensor) -> Tensor:
        """Compute I [b 1 q n] of queries for the indexer's keys [b 1 q|1 n c]."""
        return score_index(qkv.q[:, self.heads :], qkv.features["weights"], keys)

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Select keys for one query at a time, and compute attention to these alone."""
        q = linear_heads(self.index_query, x, self.index_heads)
        q = rotate_heads(self.position, q, positions, of="query")
        k = linear_heads(self.index_key, source, 1)
        k = rotate_heads(self.position, k, positions, of="key")[:, 0]
        weights = linear(self.index_weight, x)
        selected = torch.zeros_like(visible)
        for b, i in product(range(len(x)), range(x.shape[1])):
            seen = visible[b, i].nonzero()[:, 0]
            scores = weights[b, i] @ (q[b, :, i] @ k[b, seen].T).clamp(min=0.0)
            selected[b, i, seen[rank(scores.tolist())[: self.top_k]]] = True
        return super().naive(x, source, selected, positions)
