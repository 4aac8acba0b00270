"""DeepSeek sparse attention and its lightning indexer (DeepSeek-AI 2025)."""

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attention_zoo.attention.selected.topk_selection import (
    ChoosingAttention,
    gathered,
    largest,
    parts,
    spread,
    weigh,
    weighted,
)
from attention_zoo.attention.softmax import Heads
from attention_zoo.caches import TokenCache
from attention_zoo.errors import UserError
from attention_zoo.masks import Mask
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="lightning_indexer",
        paper="DeepSeek-AI 2025, arXiv 2512.02556 (DeepSeek-V3.2)",
        equation="softmax(q K[S]ᵀ/√c) V[S], S = top-k of Σ_j w_j ReLU(q_j·k), j over indexer heads",
        reference="flash-linear-attention naive_dsa",
        deviations="over grouped heads instead of latent attention; trained from the start by the "
        "sparse stage's loss, without the dense warm-up; indexer heads are as wide as the others "
        "and take the same encoding of heads, and no low-rank query, norm, Hadamard rotation or "
        "8-bit numbers as in the authors' code, but its scale, 1/√(c·heads); of equal scores the "
        "latest key is chosen. Every query scores all of its past, so the work of the indexer "
        "grows with length², though not the memory; no encoding on scores, which the choice would "
        "not know of",
        roles=("causal",),
        masks=("causal", "window", "key_mask", "segment_ids"),
        positions=("positions", "embeddings", "heads"),
        cache="keys, values, and a key of the indexer",
        decode_state="(2·g + 1)·t·c",
        chooses="keys",
    )
)
class LightningIndexerAttention(ChoosingAttention):
    """Small heads score all keys, and attention is paid to the best of them, by all heads alike:

        I_ts = Σ_j w_tj ReLU(q_tj · k_s),   S_t = top_k of I_t over the visible keys
        out_t = softmax(q_t K[S_t]ᵀ/√c) V[S_t]

    The choice has no gradient. The indexer learns from a loss of its own, and from x detached,

        KL(p_t ‖ softmax(I_t[S_t])),   p_t = the mean over heads of the weights on S_t, detached,

    whose mean over real tokens is `auxiliary_loss` in training. The model's loss does not reach
    the indexer, nor that loss the model. The paper has top_k = 2048.

    Args:
        top_k: keys that a query attends to, at most.
        index_heads: number of indexer heads, which share one key.
    """

    def __init__(self, *, top_k: int, index_heads: int = 4, **options: Any) -> None:
        super().__init__(**options)
        if top_k < 1:
            raise UserError(f"top_k must be at least 1 key, got {top_k}.")
        if index_heads < 1:
            raise UserError(f"index_heads must be at least 1, got {index_heads}.")
        self.top_k = top_k
        self.index_heads = index_heads
        self.index_query = nn.Linear(self.dim, index_heads * self.head_dim, bias=False)
        self.index_key = nn.Linear(self.dim, self.head_dim, bias=False)
        self.index_weight = nn.Linear(self.dim, index_heads, bias=False)

    def project_query(self, x: Tensor) -> Tensor:
        """[b h+j q c]: the j indexer heads stand behind the others, and are turned like them."""
        index = self.index_query(x.detach())
        index = rearrange(index, "b q (j c) -> b j q c", j=self.index_heads)
        return torch.cat([super().project_query(x), index], dim=1)

    def project_key_value(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """[b g+1 k c], with the indexer's key behind the others, and [b g k c]."""
        k, v = super().project_key_value(source)
        return torch.cat([k, self.index_key(source.detach())[:, None]], dim=1), v

    def heads_of(
        self,
        x: Tensor,
        context: Tensor | None,
        positions: Tensor | None,
        cache: TokenCache | None,
    ) -> Heads:
        weights = self.index_weight(x.detach())[:, None]
        return super().heads_of(x, context, positions, cache)._replace(more={"weights": weights})

    def attend(self, heads: Heads, mask: Mask, last: int) -> Tensor:
        queries, v = heads.q.shape[2], heads.v.contiguous()
        outputs, divergences = [], []
        for own in parts(queries, self.top_k):
            chosen, visible = self.chosen(heads, mask, own)
            out, divergence = checkpoint(
                self.attend_some,
                heads.q[:, :, own],
                heads.k,
                v,
                heads.more["weights"][:, :, own],
                chosen,
                visible,
                use_reentrant=False,
            )
            outputs.append(out)
            divergences.append(divergence)
        self.auxiliary_loss = None
        if self.training:
            divergence = torch.cat(divergences, dim=1)
            real = torch.ones_like(divergence)
            if mask.key_mask is not None:
                real = mask.key_mask[:, -queries:].to(divergence.dtype)
            self.auxiliary_loss = (divergence * real).sum() / real.sum().clamp(min=1.0)
        return torch.cat(outputs, dim=2)

    def attend_some(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        weights: Tensor,
        chosen: Tensor,
        visible: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Of some queries, the output [b h q c], and in training the divergence [b q], else zeros.

        Args:
            q: [b h+j q c]. k: [b g+1 k c]. v: [b g k c].
            weights: [b 1 q j], of the indexer.
            chosen, visible: [b 1 q n], from `chosen`.
        """
        keys = gathered(k, chosen)
        paid = weigh(q[:, : self.heads], keys[:, :-1], visible, self.scale)
        out = weighted(self.dropped(paid), gathered(v, chosen))
        if not self.training:
            return out, torch.zeros_like(out[:, 0, :, 0])
        target = paid.detach().mean(dim=1)
        scores = self.index_scores(q[:, self.heads :], keys[:, -1:], weights)[:, 0]
        scores = scores.masked_fill(~visible[:, 0], torch.finfo(scores.dtype).min)
        guess = scores.log_softmax(dim=-1)
        return out, (torch.xlogy(target, target) - target * guess).sum(dim=-1)

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
        chosen, visible = self.chosen(heads, mask, slice(0, x.shape[1]))
        keys = gathered(heads.k[:, :-1], chosen)
        weights = weigh(heads.q[:, : self.heads], keys, visible, self.scale)
        return spread(weights, chosen, x.shape[1])

    @torch.no_grad()
    def chosen(self, heads: Heads, mask: Mask, own: slice) -> tuple[Tensor, Tensor]:
        """The keys that some queries choose [b 1 q n]; which of them are visible."""
        before = heads.k.shape[2] - heads.q.shape[2]
        rows = range(before + own.start, before + own.stop)
        columns = range(rows.stop)
        keys = heads.k[:, -1:, None, : columns.stop]
        weights = heads.more["weights"][:, :, own]
        scores = self.index_scores(heads.q[:, self.heads :, own], keys, weights)
        visible = mask.dense(rows, columns, device=scores.device)
        if visible is None:
            visible = torch.ones_like(scores[:1], dtype=torch.bool)
        chosen = largest(scores.masked_fill(~visible, float("-inf")), self.top_k)
        return chosen, visible.expand_as(scores).gather(3, chosen)

    def index_scores(self, q: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
        """I [b 1 q n], of index queries [b j q c], keys [b 1 q|1 n c] and weights [b 1 q j]."""
        similar = torch.einsum("b j q c, b e q n c -> b e q j n", q, keys).relu()
        scores = torch.einsum("b e q j, b e q j n -> b e q n", weights, similar)
        return scores / math.sqrt(self.head_dim * self.index_heads)

    def naive_query(self, q: Tensor, k: Tensor, v: Tensor, **more: Tensor) -> Tensor:
        scores = torch.zeros_like(k[-1, :, 0])
        for weight, index_query in zip(more["weights"][0], q[self.heads :], strict=True):
            scores = scores + weight * (k[-1] @ index_query).relu()
        order = sorted(range(len(scores)), key=lambda s: (scores[s].item(), s), reverse=True)
        chosen = order[: self.top_k]
        rows = []
        for head in range(self.heads):
            group = head * self.kv_heads // self.heads
            weights = (k[group, chosen] @ q[head] * self.scale).softmax(dim=0)
            rows.append(weights @ v[group, chosen])
        return torch.stack(rows)
