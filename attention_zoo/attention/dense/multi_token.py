"""Multi-token attention (Golovneva et al. 2025)."""

from collections.abc import Iterator
from typing import Any

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from attention_zoo.attention import naive
from attention_zoo.attention.softmax import QKV, ExplicitScoresAttention, register_softmax
from attention_zoo.backends.reference import masked_softmax
from attention_zoo.caches import Cache, TokenCache
from attention_zoo.errors import UserError, check_positive
from attention_zoo.masks import Visibility


class QueryCache(TokenCache):
    """A token cache that also keeps the queries of the last few tokens."""

    def __init__(self, count: int, window: int | None) -> None:
        super().__init__(window)
        self.queries = TokenCache(window=count)

    def arrange(self, key_mask: Tensor | None, order: Tensor | None) -> None:
        super().arrange(key_mask, order)
        self.queries.arrange(key_mask, order)

    def reorder(self, index: Tensor) -> None:
        super().reorder(index)
        self.queries.reorder(index)


@register_softmax(
    name="multi_token",
    also_called=("mta",),
    paper="Golovneva et al. 2025, arXiv 2504.00927, §3.1 and §3.2",
    equation="W softmax(mask(θ * mask₀(QKᵀ/√c))) V, W mixes heads",
    reference="closed form",
    deviations="key-query convolution before the softmax and head mixing after it, in every "
    "layer; without the paper's normalisation of heads; in a window, and between packed "
    "sequences, only queries at tokens that the query sees enter the convolution",
    roles=("causal",),
    positions=("positions", "embeddings", "heads", "width", "scores", "content"),
    cache="keys and values, and the last C − 1 queries",
    weights="signed",
)
class MultiTokenAttention(ExplicitScoresAttention):
    """Weights that depend on several queries and keys, by a convolution over the scores.

        z_ij = Σ_{l < C} Σ_m θ_lm s_{i−l, j−m},   −⌊K/2⌋ ≤ m < ⌈K/2⌉
        a_h = Σ_{h'} W_hh' softmax_j(z_h'),   out = a V

    A score s counts as zero where its query does not see its key, or where query i does not see the
    token of query i − l; z is masked as usual. Each head has its own θ; W mixes within groups of
    heads. Both start as the identity. A window bounds the cache, but not the work and memory: all
    scores are computed.

    Args:
        query_kernel: C, in queries, the current one included.
        key_kernel: K, in keys.
        head_kernel: heads in a group.
    """

    counts_columns = True

    def __init__(
        self, *, query_kernel: int = 6, key_kernel: int = 11, head_kernel: int = 2, **options: Any
    ) -> None:
        super().__init__(**options)
        check_positive(query_kernel=query_kernel, key_kernel=key_kernel)
        if head_kernel < 1 or self.heads % head_kernel:
            raise UserError(
                "heads must be a multiple of head_kernel, "
                f"got heads={self.heads}, head_kernel={head_kernel}."
            )
        kernel = torch.zeros(self.heads, query_kernel, key_kernel)
        kernel[:, 0, key_kernel // 2] = 1.0
        # θ by head, l and m + ⌊K/2⌋.
        self.kernel = nn.Parameter(kernel)
        self.mixture = nn.Parameter(torch.eye(head_kernel).repeat(self.heads // head_kernel, 1, 1))

    def decode_state(self, tokens: int) -> int:
        queries = min(tokens, self.kernel.shape[1] - 1)
        return super().decode_state(tokens) + queries * self.heads * self.head_dim

    def create_cache(self) -> Cache:
        window = None if self.window is None else self.window + self.kernel.shape[1] - 1
        return QueryCache(self.kernel.shape[1] - 1, window)

    def cached_tokens(self, tokens: int) -> int:
        # The convolution reads the scores of earlier queries too.
        if self.window is None:
            return tokens
        return min(tokens, self.window + self.kernel.shape[1] - 1)

    def project_qkv(
        self, x: Tensor, context: Tensor | None, positions: Tensor, cache: TokenCache | None
    ) -> QKV:
        """Put the earlier queries, which the convolution reads, before the new ones."""
        qkv = super().project_qkv(x, context, positions, cache)
        if cache is None:
            return qkv
        assert isinstance(cache, QueryCache)
        q_positions = qkv.q_positions.expand(len(x), -1)[..., None]
        joined = cache.queries.append(q=qkv.q, positions=q_positions)
        return qkv._replace(q=joined["q"], q_positions=joined["positions"][..., 0])

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        # The rows before these belong to earlier queries.
        return super().project_output(attended[:, :, -x.shape[1] :], x)

    def window_spans(self, qkv: QKV, visible: Visibility) -> Iterator[tuple[QKV, Visibility]]:
        """Yield all queries at once, as the convolution reads scores of other queries."""
        yield qkv, visible

    def normalise(self, scores: Tensor, visible: Tensor | None) -> Tensor:
        if visible is None:
            visible = torch.ones_like(scores[:1, :1], dtype=torch.bool)
        weights = masked_softmax(self.convolve(scores, visible), visible)
        grouped = rearrange(weights, "b (n i) q k -> b n i q k", i=self.mixture.shape[1])
        mixed = einsum(self.mixture.to(grouped.dtype), grouped, "n o i, b n i q k -> b n o q k")
        return mixed.flatten(1, 2)

    def convolve(self, scores: Tensor, visible: Tensor) -> Tensor:
        """Compute z [b h q k] from scores s. The queries are the last ones."""
        rows, keys = scores.shape[2:]
        count, width = self.kernel.shape[1:]
        # Pad with count - 1 rows of zeros before the first query.
        scores = pad(scores.masked_fill(~visible, 0.0), (0, 0, count - 1, 0))
        seen = pad(visible, (count - 1, 0))
        # θ counts keys from right to left, conv2d from left to right.
        kernel = self.kernel.flip(-1)[:, None, None].to(scores.dtype)
        total = scores.new_zeros(())
        for back in range(count):
            offset = count - 1 - back
            # True where a query sees the token `back` columns before itself.
            is_visible = seen.diagonal(keys - rows + offset, 2, 3)[..., None]
            part = scores[:, :, offset : offset + rows].masked_fill(~is_visible, 0.0)
            part = pad(part, ((width - 1) // 2, width // 2))
            total = total + conv2d(part, kernel[:, :, :, back], groups=self.heads)
        return total

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Sum over the kernel's entries, each with the scores shifted accordingly."""
        q, k, v = self.naive_qkv(x, source)
        scores = self.naive_score_matrix(q, k, source, visible, positions)
        length, width = x.shape[1], self.kernel.shape[2]
        total = torch.zeros_like(scores)
        for back in range(min(self.kernel.shape[1], length)):
            is_visible = visible.diagonal(-back, 1, 2)[:, None, :, None]
            for shift in range(max(-(width // 2), 1 - length), min((width + 1) // 2, length)):
                weight = self.kernel[:, back, shift + width // 2, None, None]
                there = slice(max(shift, 0), length + min(shift, 0))
                here = slice(max(-shift, 0), length - max(shift, 0))
                part = (scores[:, :, : length - back, here] * is_visible) * weight
                total[:, :, back:, there] += part
        weights = naive.softmax(total, visible)
        mixed = torch.einsum("h i, b i q k -> b h q k", torch.block_diag(*self.mixture), weights)
        return self.naive_output(mixed @ v, x)
