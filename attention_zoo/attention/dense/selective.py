"""Selective attention (Leviathan et al. 2024)."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_zoo.attention.dense.definition import heads_in_full, scores_by_definition
from attention_zoo.attention.explicit_scores import ExplicitScoresAttention
from attention_zoo.attention.softmax import Heads, visible_to
from attention_zoo.backends.reference import repeat_heads
from attention_zoo.caches import Cache, TokenCache
from attention_zoo.masks import Mask
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="selective",
        paper="Leviathan et al. 2024, arXiv 2410.02703",
        equation="softmax(QKᵀ/√c − F) V, F_ij = Σ_{l<i} [s_lj of the first head]₊",
        reference="x-transformers Attend with selective",
        deviations="tokens that all later queries mask stay in the cache: it is not pruned; the "
        "first token, which none may mask, is that of the own packed sequence, behind padding",
        roles=("causal",),
        masks=("causal", "window", "key_mask", "segment_ids"),
        positions=("positions", "embeddings", "heads", "width", "scores", "content"),
        cache="keys, values, and how much each key is masked",
        decode_state="t·(2·g·c + 1)",
    )
)
class SelectiveAttention(ExplicitScoresAttention):
    """Softmax attention in which every token masks, for all later queries, what is done with:

        a_ij = softmax_j(s_ij − F_ij),   F_ij = Σ_{l < i} S_lj

    S_lj is the score of the first head where it is positive and query l sees key j; but no token
    masks itself, or the first key that it sees, and a padded one masks none. F is the same for all
    heads, and only ever grows.
    """

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        assert cache is None or isinstance(cache, TokenCache)
        mask = self.effective_mask(mask, x, context, cache)
        heads = self.heads_of(x, context, positions, cache)
        weights, masked = self.selected(heads, visible_to(heads, mask, heads.k.shape[2]))
        if cache is not None:
            cache.tokens["masked"] = masked[:, -1, :, None]
        weights = torch.dropout(weights, self.dropout, train=self.training)
        return self.finish(weights @ repeat_heads(heads.v, self.heads), x)

    def weights(self, heads: Heads, visible: Tensor | None) -> Tensor:
        return self.selected(heads, visible)[0]

    def selected(self, heads: Heads, visible: Tensor | None) -> tuple[Tensor, Tensor]:
        """The weights [b h q k], and F [b 1+q k]."""
        scores, bias = self.scores(heads.q, heads.k), self.score_bias(heads, visible)
        if bias is not None:
            scores = scores + bias
        masked = masking(scores[:, 0], visible, heads.more["masked"])
        weights = self.normalise(scores - masked[:, None, :-1], visible)
        return weights.to(heads.v.dtype), masked

    def extra_features(self, source: Tensor) -> dict[str, Tensor]:
        # Sums over all queries lose too much in half precision.
        dtype = torch.promote_types(source.dtype, torch.float32)
        return {"masked": torch.zeros_like(source[..., :1], dtype=dtype)}

    def naive(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        visible: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        """One query after the other."""
        heads = self.heads_of(x, context, positions, None)
        k, v = heads_in_full(heads)
        bias = self.score_bias(heads, visible[:, None])
        scores = scores_by_definition(heads.q, k, bias, width=self.head_dim)
        masked, rows = scores.new_zeros(x.shape[:2]), []
        token_positions = torch.arange(x.shape[1])
        for i, (row, seen) in enumerate(zip(scores.unbind(2), visible.unbind(1), strict=True)):
            left = row - masked[:, None]
            powers = torch.exp(left - left.amax(dim=-1, keepdim=True).detach()) * seen[:, None]
            total = powers.sum(dim=-1, keepdim=True)
            rows.append(powers / total.masked_fill(total == 0, 1.0))
            first = seen.int().argmax(dim=1, keepdim=True)
            others = seen & (token_positions != i) & (token_positions != first)
            real = seen[:, i : i + 1]
            masked = masked + row[:, 0].clamp(min=0) * others * real
        return self.finish(torch.stack(rows, dim=2) @ v, x)


def masking(scores: Tensor, visible: Tensor | None, before: Tensor) -> Tensor:
    """F, how much each key is masked for each query, and for the one behind the last.

    Args:
        scores: [b q k] of the first head. The queries are the last ones.
        visible: [b|1 1 q k]; None where all is.
        before: [b k 1], for the first of these queries.

    Returns:
        [b 1+q k].
    """
    queries, keys = scores.shape[1:]
    seen = torch.ones_like(scores, dtype=torch.bool) if visible is None else visible[:, 0]
    # Neither the first key in sight, nor those of the query itself and after it; and nothing by
    # padded queries, which do not see themselves.
    others = (seen & (seen.cumsum(dim=-1) > 1)).tril(keys - queries - 1)
    others = others & seen.diagonal(keys - queries, 1, 2)[..., None]
    selection = scores.relu().masked_fill(~others, 0.0).to(before.dtype)
    return before.transpose(1, 2) + pad(selection, (0, 0, 1, 0)).cumsum(dim=1)
