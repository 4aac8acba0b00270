"""Selective attention (Leviathan et al. 2024)."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_zoo.attention import naive
from attention_zoo.attention.softmax import QKV, ExplicitScoresAttention, register_softmax
from attention_zoo.backends.reference import repeat_heads
from attention_zoo.caches import Cache, TokenCache
from attention_zoo.masks import Mask, Visibility
from attention_zoo.precision import upcast


@register_softmax(
    name="selective",
    paper="Leviathan et al. 2024, arXiv 2410.02703",
    equation="softmax(QKᵀ/√c − F) V, F_ij = Σ_{l<i} [s_lj of the first head]₊",
    reference="x-transformers Attend with selective",
    deviations="tokens that all later queries mask stay in the cache: it is not pruned; the "
    "first token, which none may mask, is the first real one of its packed sequence",
    roles=("causal",),
    positions=("positions", "embeddings", "heads", "width", "scores", "content"),
    cache="keys, values, and how much each key is masked",
)
class SelectiveAttention(ExplicitScoresAttention):
    """Softmax attention in which every token masks, for all later queries, keys without use.

        a_ij = softmax_j(s_ij − F_ij),   F_ij = Σ_{l < i} S_lj

    S_lj is the score of the first head where it is positive and query l sees key j; but no token
    masks itself, or the first key that it sees, and a padded one masks none. F is the same for all
    heads, and only ever grows. A window bounds the cache, but not the work and memory: all scores
    are computed.
    """

    def attend_tokens(
        self, x: Tensor, context: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None
    ) -> Tensor:
        assert cache is None or isinstance(cache, TokenCache)
        qkv = self.project_qkv(x, context, positions, cache)
        keys = qkv.k.shape[2]
        length = keys if cache is None else cache.length
        visible = Visibility.of_last(mask, x.shape[1], keys, length)
        weights, masking = self.weights_and_masking(qkv, visible)
        if cache is not None:
            cache.tokens["masking"] = cache.select_kept(masking[:, -1, :, None])
        return self.drop_weights(weights) @ repeat_heads(qkv.v, self.heads)

    def weights(self, qkv: QKV, visible: Visibility) -> Tensor:
        return self.weights_and_masking(qkv, visible)[0]

    def weights_and_masking(self, qkv: QKV, visible: Visibility) -> tuple[Tensor, Tensor]:
        """Return the weights [b h q k], and F [b 1+q k]."""
        scores = self.biased_scores(qkv, visible)
        seen = visible.dense(scores.device)
        masking = accumulate_masking(scores[:, 0], seen, qkv.features["masking"])
        weights = self.normalise(scores - masking[:, None, :-1], seen)
        return weights.to(qkv.v.dtype), masking

    def extra_features(self, source: Tensor) -> dict[str, Tensor]:
        # Sums over all queries lose too much in half precision.
        return {"masking": torch.zeros_like(upcast(source[..., :1]))}

    def decode_state(self, tokens: int) -> int:
        return super().decode_state(tokens) + self.cached_tokens(tokens)

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Compute one query after the other."""
        q, k, v = self.naive_qkv(x, source)
        scores = self.naive_score_matrix(q, k, source, visible, positions)
        masking, rows = scores.new_zeros(x.shape[:2]), []
        columns = torch.arange(x.shape[1])
        for i, (row, seen) in enumerate(zip(scores.unbind(2), visible.unbind(1), strict=True)):
            rows.append(naive.softmax((row - masking[:, None])[:, :, None], seen[:, None])[:, :, 0])
            first = seen.int().argmax(dim=1, keepdim=True)
            others = seen & (columns != i) & (columns != first)
            real = seen[:, i : i + 1]
            masking = masking + row[:, 0].clamp(min=0) * others * real
        return self.naive_output(torch.stack(rows, dim=2) @ v, x)


def accumulate_masking(scores: Tensor, visible: Tensor | None, before: Tensor) -> Tensor:
    """Return F, how much each key is masked for each query, and for the one after the last.

    Args:
        scores: [b q k] of the first head. The queries are the last ones.
        visible: [b|1 1 q k]; None where every query sees every key.
        before: [b k 1], for the first of these queries.

    Returns:
        [b 1+q k].
    """
    queries, keys = scores.shape[1:]
    seen = torch.ones_like(scores, dtype=torch.bool) if visible is None else visible[:, 0]
    # A query masks neither the first key that it sees, nor itself, nor later keys. Padded queries,
    # which do not see themselves, mask nothing.
    others = (seen & (seen.cumsum(dim=-1) > 1)).tril(keys - queries - 1)
    others = others & seen.diagonal(keys - queries, 1, 2)[..., None]
    selection = scores.relu().masked_fill(~others, 0.0).to(before.dtype)
    return before.transpose(1, 2) + pad(selection, (0, 0, 1, 0)).cumsum(dim=1)
