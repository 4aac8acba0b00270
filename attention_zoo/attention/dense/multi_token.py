"""Multi-token attention (Golovneva et al. 2025)."""

from typing import Any

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from attention_zoo.attention.dense.definition import heads_in_full, scores_by_definition
from attention_zoo.attention.explicit_scores import ExplicitScoresAttention
from attention_zoo.attention.softmax import Heads
from attention_zoo.backends.reference import masked_softmax
from attention_zoo.caches import Cache, TokenCache
from attention_zoo.errors import UserError
from attention_zoo.zoo import ATTENTION, AttentionCard


class QueryCache(TokenCache):
    """Of every token what attention keeps, and of the last few their queries too."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.queries: dict[str, Tensor] = {}

    def join(self, **new: Tensor) -> dict[str, Tensor]:
        """Take in queries [b … q c]; return the kept ones with the new ones behind them."""
        held = self.queries
        joined = {
            name: torch.cat([held[name], part], dim=-2) if name in held else part
            for name, part in new.items()
        }
        # A copy: a slice would hold on to all of a long prompt.
        self.queries = {
            name: part[..., max(part.shape[-2] - self.count, 0) :, :].clone()
            for name, part in joined.items()
        }
        return joined

    def reorder(self, index: Tensor) -> None:
        super().reorder(index)
        self.queries = {name: part.index_select(0, index) for name, part in self.queries.items()}


@ATTENTION.register(
    AttentionCard(
        name="multi_token",
        paper="Golovneva et al. 2025, arXiv 2504.00927, §3.1 and §3.2",
        equation="W softmax(mask(θ * mask₀(QKᵀ/√c))) V, W mixes heads",
        reference="closed form",
        deviations="key-query convolution before the softmax and head mixing after it, in every "
        "layer; without the paper's normalisation of heads; in a window, and between packed "
        "sequences, only queries at tokens that the query sees enter the convolution",
        roles=("causal",),
        masks=("causal", "window", "key_mask", "segment_ids"),
        positions=("positions", "embeddings", "heads", "width", "scores", "content"),
        cache="keys and values, and the last C − 1 queries",
        decode_state="2·t·g·c + min(t, C - 1)·h·c",
        weights="signed",
    )
)
class MultiTokenAttention(ExplicitScoresAttention):
    """Weights that depend on several queries and keys, by a convolution over the scores:

        z_ij = Σ_{l < C} Σ_m θ_lm s_{i−l, j−m},   −⌊K/2⌋ ≤ m < ⌈K/2⌉
        a_h = Σ_{h'} W_hh' softmax_j(z_h'),   out = a V

    A score s counts as zero where its query does not see its key, or where query i does not see the
    token of query i − l; z is masked as usual. θ is of each head its own; W mixes within groups of
    heads. Both start as the identity.

    Args:
        query_kernel: C, in queries, the latest one included.
        key_kernel: K, in keys.
        head_kernel: heads in a group.
    """

    def __init__(
        self,
        *,
        query_kernel: int = 6,
        key_kernel: int = 11,
        head_kernel: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if min(query_kernel, key_kernel) < 1:
            raise UserError(
                "query_kernel and key_kernel must be at least 1, "
                f"got query_kernel={query_kernel}, key_kernel={key_kernel}."
            )
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

    @property
    def sizes(self) -> dict[str, int]:
        return super().sizes | {"C": self.kernel.shape[1]}

    def empty_cache(self) -> Cache:
        return QueryCache(self.kernel.shape[1] - 1)

    def heads_of(
        self,
        x: Tensor,
        context: Tensor | None,
        positions: Tensor | None,
        cache: TokenCache | None,
    ) -> Heads:
        """With the earlier queries that the convolution of the new ones' scores reads."""
        heads = super().heads_of(x, context, positions, cache)
        if cache is None:
            return heads
        assert isinstance(cache, QueryCache)
        token_positions = heads.q_positions.expand(len(x), -1)[..., None]
        joined = cache.join(q=heads.q, positions=token_positions)
        return heads._replace(q=joined["q"], q_positions=joined["positions"][..., 0])

    def finish(self, attended: Tensor, x: Tensor) -> Tensor:
        # Rows before these are of earlier queries.
        return self.project_output(attended[:, :, -x.shape[1] :])

    def normalise(self, scores: Tensor, visible: Tensor | None) -> Tensor:
        if visible is None:
            visible = torch.ones_like(scores[:1, :1], dtype=torch.bool)
        weights = masked_softmax(self.convolved(scores, visible), visible)
        grouped = rearrange(weights, "b (n i) q k -> b n i q k", i=self.mixture.shape[1])
        mixed = einsum(self.mixture, grouped, "n o i, b n i q k -> b n o q k")
        return mixed.flatten(1, 2)

    def convolved(self, scores: Tensor, visible: Tensor) -> Tensor:
        """z [b h q k] of scores s. The queries are the last ones."""
        rows, keys = scores.shape[2:]
        count, width = self.kernel.shape[1:]
        # Above the first query stand count - 1 of zeros, and so before the first key.
        scores = pad(scores.masked_fill(~visible, 0.0), (0, 0, count - 1, 0))
        seen = pad(visible, (count - 1, 0))
        # Keys are read from the right to the left by θ, and from the left to the right by torch.
        kernel = self.kernel.flip(-1)[:, None, None]
        total = scores.new_zeros(())
        for back in range(count):
            offset = count - 1 - back
            # Whether each query sees the token `back` places before its own.
            sees = seen.diagonal(keys - rows + offset, 2, 3)[..., None]
            part = scores[:, :, offset : offset + rows].masked_fill(~sees, 0.0)
            part = pad(part, ((width - 1) // 2, width // 2))
            total = total + conv2d(part, kernel[:, :, :, back], groups=self.heads)
        return total

    def naive(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        visible: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        """A sum over the places of the kernel, each with the scores shifted there."""
        heads = self.heads_of(x, context, positions, None)
        k, v = heads_in_full(heads)
        bias = self.score_bias(heads, visible[:, None])
        scores = scores_by_definition(heads.q, k, bias, width=self.head_dim)
        scores = scores * visible[:, None]
        length, width = x.shape[1], self.kernel.shape[2]
        total = torch.zeros_like(scores)
        for back in range(min(self.kernel.shape[1], length)):
            sees = visible.diagonal(-back, 1, 2)[:, None, :, None]
            for shift in range(max(-(width // 2), 1 - length), min((width + 1) // 2, length)):
                weight = self.kernel[:, back, shift + width // 2, None, None]
                there = slice(max(shift, 0), length + min(shift, 0))
                here = slice(max(-shift, 0), length - max(shift, 0))
                part = (scores[:, :, : length - back, here] * sees) * weight
                total[:, :, back:, there] += part
        powers = torch.exp(total - total.amax(dim=-1, keepdim=True).detach()) * visible[:, None]
        sums = powers.sum(dim=-1, keepdim=True)
        weights = powers / sums.masked_fill(sums == 0, 1.0)
        mixture = torch.block_diag(*self.mixture)
        mixed = torch.einsum("h i, b i q k -> b h q k", mixture, weights)
        return self.finish(mixed @ v, x)
