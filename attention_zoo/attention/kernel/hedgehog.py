"""Attention by learned features (Zhang et al. 2024)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from attention_zoo.attention.kernel.base import FeatureMap, KernelAttention, register_kernel


class HedgehogFeatures(FeatureMap):
    """φ(x) = softmax([W x, −W x]) (Zhang et al. 2024, arXiv 2402.04347).

    Each head learns a W for queries and another for keys; they start as the identity.
    """

    def __init__(self, *, heads: int, head_dim: int, **options: Any) -> None:
        super().__init__(heads=heads, head_dim=head_dim, **options)
        self.num_features = 2 * head_dim
        self.query_weight = nn.Parameter(torch.eye(head_dim).repeat(heads, 1, 1))
        self.key_weight = nn.Parameter(torch.eye(head_dim).repeat(heads, 1, 1))

    def map_queries(self, q: Tensor, positions: Tensor | None) -> Tensor:
        return softmax_of_signs(q, self.query_weight)

    def map_keys(self, k: Tensor, positions: Tensor | None) -> Tensor:
        return softmax_of_signs(k, self.key_weight)

    def naive_features(self, x: Tensor, positions: Tensor, of: Literal["query", "key"]) -> Tensor:
        weight = {"query": self.query_weight, "key": self.key_weight}[of]
        y = torch.einsum("h i c, b h t c -> b h t i", weight, x)
        powers = torch.exp(torch.cat([y, -y], dim=-1))
        return powers / powers.sum(dim=-1, keepdim=True)


def softmax_of_signs(x: Tensor, weight: Tensor) -> Tensor:
    """Compute softmax([W x, −W x]) for x [b h t c] and W [h c c]: [b h t 2c]."""
    y = x @ weight.to(x.dtype).transpose(-2, -1)
    return torch.cat([y, -y], dim=-1).softmax(dim=-1)


@register_kernel(
    name="hedgehog",
    paper="Zhang et al. 2024, arXiv 2402.04347",
    equation="φ(q)(Σ φ(k)ᵀv) / φ(q) Σ φ(k), φ(x) = softmax([W x, −W x])",
    reference="closed form",
    deviations="trained with the task alone, not to mimic the weights of softmax attention; "
    "rotary positions as in linear",
)
class HedgehogAttention(KernelAttention):
    """Linear attention with features that each head learns, as spiky as those of softmax."""

    decided_options = ("feature_map",)

    def __init__(self, **options: Any) -> None:
        super().__init__(feature_map=HedgehogFeatures, **options)
