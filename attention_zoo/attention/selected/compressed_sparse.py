"""Compressed sparse attention, CSA (DeepSeek-AI 2026)."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from attention_zoo.attention import naive
from attention_zoo.attention.local.compressed import CompressedAttention, Entries
from attention_zoo.attention.local.compressor import BlockCompressor
from attention_zoo.attention.online_softmax import PartialSoftmax, compute_partial_softmax
from attention_zoo.attention.selected.indexer import (
    average_real,
    index_divergence,
    score_index,
    warn_if_untaken,
)
from attention_zoo.attention.selected.topk_selection import (
    gather_selected,
    select_largest,
    split_queries,
    weigh_keys,
)
from attention_zoo.attention.softmax import QKV, register_softmax
from attention_zoo.checkpointing import checkpoint
from attention_zoo.errors import check_positive
from attention_zoo.masks import Mask


@register_softmax(
    name="compressed_sparse",
    also_called=("csa",),
    paper="DeepSeek-AI 2026 (DeepSeek-V4), §2.3.1, eq. 9 to 17",
    equation="softmax over the last W tokens, C[S] of whole blocks, and a sink; S = top-k of "
    "Σ_j w_j ReLU(q_j·C_I), j over indexer heads; C, C_I = norm(Σ_j softmax_j(Z_j + B_j) ⊙ V_j) "
    "over two blocks of m tokens",
    reference="transformers DeepseekV4Attention",
    deviations="as in `heavily_compressed`. The indexer is as wide as the heads, its queries have "
    "no latent either, and of equal scores it selects the latest entry; it learns by the loss of "
    "`lightning_indexer`, over the selected entries, without a dense warm-up. Every query scores "
    "all entries before it",
    roles=("causal",),
    masks=("causal", "key_mask", "segment_ids"),
    positions=("positions", "embeddings", "heads"),
    cache="W keys, two entries for each block of m tokens, and what the next entries are made of",
    weights="nonnegative",
    chooses="entries",
)
class CompressedSparseAttention(CompressedAttention):
    """Attention to the last W tokens and to the best entries of overlapping blocks; see the base.

        C_i = norm(Σ_j softmax_j(Z_j + B_j) ⊙ V_j),   j in blocks i − 1 and i
        I_ti = Σ_h w_th ReLU(q_th · C_I,i)/√(c·h),   S_t = top_k of I_t over the whole blocks

    The two blocks have projections and a B of their own, and so has the indexer, whose entries C_I
    are made likewise. The selection has no gradient: the indexer learns by a loss of its own, as in
    `lightning_indexer`, with the heads' softmax over the selected entries alone as its target.

    The paper has m = 4, W = 128 and top_k = 512.

    Args:
        top_k: largest number of entries that a query attends to.
        index_heads: number of indexer heads, which share their entries.
    """

    overlap = True

    def __init__(self, *, top_k: int, index_heads: int = 4, **options: Any) -> None:
        super().__init__(**options)
        check_positive(top_k=top_k, index_heads=index_heads)
        self.top_k = top_k
        self.index_heads = index_heads
        self.index_query = nn.Linear(self.dim, index_heads * self.head_dim, bias=False)
        self.index_weight = nn.Linear(self.dim, index_heads, bias=False)
        self.index_compressor = self.create_compressor()

    @property
    def compressors(self) -> dict[str, BlockCompressor]:
        return {"keys": self.compressor, "index": self.index_compressor}

    def project_blocks(self, x: Tensor) -> dict[str, Tensor]:
        return super().project_blocks(x) | {"index": self.index_compressor.project(x.detach())}

    def project_index(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Project x to queries [b j q c] of the indexer, and weights [b 1 q j] of its heads."""
        x = x.detach()
        q = rearrange(self.index_query(x), "b q (j c) -> b j q c", j=self.index_heads)
        return self.position.rotate(q, q[:, :0], positions)[0], self.index_weight(x)[:, None]

    def attend_entries(self, x: Tensor, qkv: QKV, entries: Entries, mask: Mask) -> PartialSoftmax:
        index, weights = self.project_index(x, qkv.q_positions)
        parts = []
        for part in split_queries(x.shape[1], self.top_k):
            start, stop = part.start, part.stop
            queries = (q[:, :, start:stop] for q in (qkv.q, index, weights, entries.visible))
            parts.append(checkpoint(self.attend_selected, *queries, entries.features))
        *results, divergences = zip(*parts, strict=True)
        self.auxiliary_loss = None
        if self.training:
            self.auxiliary_loss = average_real(torch.cat(divergences, dim=1), mask)
        numerator = torch.cat(results[0], dim=2)
        warn_if_untaken(numerator, self.auxiliary_loss, self.card.name)
        return PartialSoftmax(numerator, *(torch.cat(part, dim=2) for part in results[1:]))

    def attend_selected(
        self, q: Tensor, index: Tensor, weights: Tensor, visible: Tensor, entries: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """Attend from queries [b h q c] to the entries that the indexer selects for them.

        Returns:
            The parts of a softmax, [b h q …], and the divergence [b q]; zeros in evaluation.
        """
        chosen, seen = self.select_entries(index, weights, visible, entries["index"])
        keys = gather_selected(entries["keys"], chosen)
        result = compute_partial_softmax(
            q.transpose(1, 2),
            keys[:, 0],
            keys[:, 0],
            seen[:, 0, :, None],
            scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
        )
        divergence = torch.zeros_like(q[:, 0, :, 0])
        if self.training:
            with torch.no_grad():
                target = weigh_keys(q, keys, seen, self.scale)
            scores = score_index(index, weights, gather_selected(entries["index"], chosen))
            divergence = index_divergence(target, scores, seen)
        return *(part.transpose(1, 2) for part in result), divergence

    @torch.no_grad()
    def select_entries(
        self, index: Tensor, weights: Tensor, visible: Tensor, keys: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the entries that queries select [b 1 q n], and which of them are visible."""
        scores = score_index(index, weights, keys[:, :, None])
        seen = visible.expand_as(scores)
        chosen = select_largest(scores.masked_fill(~seen, float("-inf")), self.top_k)
        return chosen, seen.gather(3, chosen)

    def choose_entries(self, x: Tensor, qkv: QKV, entries: Entries) -> Tensor:
        index = self.project_index(x, qkv.q_positions)
        chosen, seen = self.select_entries(*index, entries.visible, entries.features["index"])
        shape = (*chosen.shape[:3], entries.ends.shape[1])
        return torch.zeros(shape, dtype=torch.bool, device=x.device).scatter(3, chosen, seen)

    def naive_choice(self, x: Tensor, positions: Tensor) -> Tensor:
        entries = self.index_compressor.naive(x)
        keys = self.naive_rotate(entries, positions[:: self.block][: len(entries)], 0, of="key")
        queries = naive.linear(self.index_query, x[-1]).view(self.index_heads, self.head_dim)
        queries = self.naive_rotate(queries, positions[-1], 0, of="query")
        weights = naive.linear(self.index_weight, x[-1])
        scores = weights @ (queries @ keys.T).clamp(min=0.0)
        return torch.tensor(naive.rank(scores.tolist())[: self.top_k], dtype=torch.long)
