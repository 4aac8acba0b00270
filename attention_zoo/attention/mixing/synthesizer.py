"""Weights made by each token alone (Tay et al. 2020)."""

from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.attention.explicit_scores import ExplicitScoresAttention
from attention_zoo.attention.softmax import Heads
from attention_zoo.caches import TokenCache
from attention_zoo.errors import UserError
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="synthesizer",
        paper="Tay et al. 2020, arXiv 2005.00743",
        equation="softmax(W₂ relu(W₁ x_i) + b) V, an output of W₂ for each of max_length places",
        reference="closed form",
        deviations="the dense synthesizer, without factors and mixtures; W₁ is as narrow as a "
        "head, and has a bias as the other projections do; global only, as the control that it "
        "is here",
        roles=("global",),
        masks=("causal", "window", "key_mask", "segment_ids"),
        positions=("embeddings",),
    )
)
class SynthesizerAttention(ExplicitScoresAttention):
    """What attention is compared with, as its queries do not look at keys: each token says by
    itself how much it wants of every place,

        a_ij = softmax_j(w_j · relu(W₁ x_i) + b_j),   out_i = Σ_j a_ij V_j

    with a learned vector w_j and number b_j of each head for every place j.

    Args:
        max_length: the number of places, in tokens. A longer input is refused.
    """

    decided_options = ("kv_heads",)
    max_length: int

    def __init__(self, *, max_length: int = 1024, **options: Any) -> None:
        super().__init__(kv_heads=None, **options)
        if max_length < 1:
            raise UserError(f"max_length must be at least 1, got {max_length}.")
        self.max_length = max_length
        # So that scores start with about the variance that scaled dot products have.
        vectors = torch.randn(max_length, self.heads, self.head_dim) * self.head_dim**-0.5
        self.position_vectors = nn.Parameter(vectors)
        self.position_bias = nn.Parameter(torch.zeros(max_length, self.heads))

    def create_projections(self, bias: bool) -> None:
        """W₁ is the queries'; there are no keys."""
        width = self.heads * self.head_dim
        self.query = nn.Linear(self.dim, width, bias=bias)
        self.value = nn.Linear(self.dim, width, bias=bias)
        self.output = nn.Linear(width, self.dim, bias=bias)

    def project_key_value(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys without channels, and values."""
        v = self.value(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return v[..., :0], v

    def heads_of(
        self,
        x: Tensor,
        context: Tensor | None,
        positions: Tensor | None,
        cache: TokenCache | None,
    ) -> Heads:
        """With the vectors of their places as keys."""
        heads = super().heads_of(x, context, positions, cache)
        keys = self.position_vectors[heads.k_positions].transpose(1, 2)
        return heads._replace(k=keys.expand_as(heads.v))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q.relu() @ k.transpose(-2, -1)

    def score_bias(self, heads: Heads, visible: Tensor | None) -> Tensor:
        bias = self.position_bias[heads.k_positions].transpose(1, 2)[:, :, None]
        return bias.expand(-1, -1, heads.q.shape[2], -1)

    def naive_scores(self, head: int, query: Tensor, keys: Tensor) -> Tensor:
        return (query.clamp(min=0) * keys).sum(dim=-1)
