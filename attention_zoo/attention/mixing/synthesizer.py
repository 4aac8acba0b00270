"""Weights computed from each token alone (Tay et al. 2020)."""

from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.attention import naive
from attention_zoo.attention.softmax import QKV, ExplicitScoresAttention, register_softmax
from attention_zoo.caches import TokenCache
from attention_zoo.errors import check_positive
from attention_zoo.masks import Visibility


@register_softmax(
    name="synthesizer",
    paper="Tay et al. 2020, arXiv 2005.00743",
    equation="softmax(W₂ relu(W₁ x_i) + b) V, an output of W₂ for each of max_length positions",
    reference="closed form",
    deviations="the dense synthesizer, without factors and mixtures; W₁ is as narrow as a head, "
    "and has a bias if the other projections do; global only, as a control",
    roles=("global",),
    masks=("causal", "window", "key_mask", "segment_ids"),
    positions=("embeddings",),
    cache="",
)
class SynthesizerAttention(ExplicitScoresAttention):
    """A control whose weights depend on the query's token alone, and on the positions of keys.

        a_ij = softmax_j(w_j · relu(W₁ x_i) + b_j),   out_i = Σ_j a_ij V_j

    with a learned vector w_j and number b_j of each head for every position j.

    Args:
        max_length: number of positions. A longer input is refused.
    """

    decided_options = ("kv_heads",)
    no_decay = ("position_bias",)
    max_length: int

    def __init__(self, *, max_length: int = 1024, **options: Any) -> None:
        super().__init__(kv_heads=None, **options)
        check_positive(max_length=max_length)
        self.max_length = max_length
        # So that scores start with about the variance that scaled dot products have.
        vectors = torch.randn(max_length, self.heads, self.head_dim) * self.head_dim**-0.5
        self.position_vectors = nn.Parameter(vectors)
        self.position_bias = nn.Parameter(torch.zeros(max_length, self.heads))

    def create_projections(self, bias: bool) -> None:
        """Create W₁, as that of queries; there are no keys."""
        width = self.heads * self.head_dim
        self.query = nn.Linear(self.dim, width, bias=bias)
        self.value = nn.Linear(self.dim, width, bias=bias)
        self.output = nn.Linear(width, self.dim, bias=bias)

    def project_key_value(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Project to keys without channels, and values."""
        v = self.value(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return v[..., :0], v

    def project_qkv(
        self, x: Tensor, context: Tensor | None, positions: Tensor, cache: TokenCache | None
    ) -> QKV:
        """Project to queries and values, with the vectors of their positions as keys."""
        qkv = super().project_qkv(x, context, positions, cache)
        keys = self.position_vectors[qkv.k_positions].transpose(1, 2)
        return qkv._replace(k=keys.expand_as(qkv.v))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q.relu() @ k.transpose(-2, -1)

    def score_bias(self, qkv: QKV, visible: Visibility) -> Tensor:
        bias = self.position_bias[qkv.k_positions].transpose(1, 2)[:, :, None]
        return bias.expand(-1, -1, qkv.q.shape[2], -1)

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Compute the equation; the scores of a token are an output for each position."""
        hidden = naive.linear_heads(self.query, x, self.heads).clamp(min=0)
        scores = torch.einsum("b h q c, n h c -> b h q n", hidden, self.position_vectors)
        scores = scores + self.position_bias.T[:, None]
        columns = positions[:, None, None].expand(*scores.shape[:3], -1)
        weights = naive.softmax(scores.gather(-1, columns), visible)
        v = naive.linear_heads(self.value, x, self.heads)
        return naive.linear_output(self.output, weights @ v)
