"""Additive attention (Bahdanau et al. 2015)."""

from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.attention.softmax import ExplicitScoresAttention, register_softmax
from attention_zoo.checkpointing import checkpoint

BLOCK = 32  # queries scored at once


@register_softmax(
    name="additive",
    also_called=("bahdanau",),
    paper="Bahdanau et al. 2015, arXiv 1409.0473, appendix A.1.2",
    equation="softmax(vᵀ tanh(W q + U k)) V",
    reference="closed form",
    deviations="several heads, and projected values, as in multi-head attention",
    positions=("positions", "embeddings", "scores"),
    cache="projected keys and values",
)
class AdditiveAttention(ExplicitScoresAttention):
    """A small network compares query and key.

        a_ij = softmax_j(vᵀ tanh(W q_i + U k_j)),   out_i = Σ_j a_ij V_j

    The scores need [b h q k c] numbers. They are made for a block of queries at a time, and made
    again in the backward pass.
    """

    decided_options = ("kv_heads",)

    def __init__(self, **options: Any) -> None:
        super().__init__(kv_heads=None, **options)
        # So that scores start with about the variance that scaled dot products have.
        self.energy = nn.Parameter(torch.randn(self.heads, self.head_dim) * self.head_dim**-0.5)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        blocks = [
            checkpoint(additive_scores, part, k, self.energy) for part in q.split(BLOCK, dim=2)
        ]
        return torch.cat(blocks, dim=2)

    def naive_scores(self, head: int, query: Tensor, keys: Tensor) -> Tensor:
        return torch.tanh(query + keys) @ self.energy[head]


def additive_scores(q: Tensor, k: Tensor, energy: Tensor) -> Tensor:
    """Compute vᵀ tanh(q + k) for q [b h q c], k [b h k c], v [h c]: [b h q k]."""
    activations = torch.tanh(q[:, :, :, None] + k[:, :, None])
    return torch.einsum("b h q k c, h c -> b h q k", activations, energy)
