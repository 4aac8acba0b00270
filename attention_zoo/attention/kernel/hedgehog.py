"""Attention by learned features (Zhang et al. 2024)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from attention_zoo.attention.kernel.base import FeatureMap, KernelAttention, register_kernel

# The authors' lower bound of a feature: so a query's and a key's never have the product zero.
EPSILON = 1e-12


class HedgehogFeatures(FeatureMap):
    """φ(x) = softmax([2y, −2y]), y = W x + b (Zhang et al. 2024, arXiv 2402.04347).

    Each head learns W and b for queries and others for keys; W starts as the identity, b as zero.
    Features are 10⁻¹² at least.
    """

    no_decay = ("query_bias", "key_bias")

    def __init__(self, *, heads: int, head_dim: int, **options: Any) -> None:
        super().__init__(heads=heads, head_dim=head_dim, **options)
        self.num_features = 2 * head_dim
        self.query_weight = nn.Parameter(torch.eye(head_dim).repeat(heads, 1, 1))
        self.query_bias = nn.Parameter(torch.zeros(heads, 1, head_dim))
        self.key_weight = nn.Parameter(torch.eye(head_dim).repeat(heads, 1, 1))
        self.key_bias = nn.Parameter(torch.zeros(heads, 1, head_dim))

    def map_queries(self, q: Tensor, positions: Tensor | None) -> Tensor:
        return softmax_of_signs(q, self.query_weight, self.query_bias)

    def map_keys(self, k: Tensor, positions: Tensor | None) -> Tensor:
        return softmax_of_signs(k, self.key_weight, self.key_bias)

    def naive_features(self, x: Tensor, positions: Tensor, of: Literal["query", "key"]) -> Tensor:
        weight = {"query": self.query_weight, "key": self.key_weight}[of]
        bias = {"query": self.query_bias, "key": self.key_bias}[of]
        y = torch.einsum("h i c, b h t c -> b h t i", weight, x) + bias
        powers = torch.exp(torch.cat([2 * y, -2 * y], dim=-1))
        return (powers / powers.sum(dim=-1, keepdim=True)).clamp(min=EPSILON)


def softmax_of_signs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute softmax([2y, −2y]), y = W x + b, of x [b h t c], W [h c c], b [h 1 c]: [b h t 2c]."""
    y = 2.0 * (x @ weight.to(x.dtype).transpose(-2, -1) + bias.to(x.dtype))
    return torch.cat([y, -y], dim=-1).softmax(dim=-1).clamp(min=EPSILON)


@register_kernel(
    name="hedgehog",
    paper="Zhang et al. 2024, arXiv 2402.04347",
    equation="φ(q)(Σ φ(k)ᵀv) / φ(q) Σ φ(k), φ(x) = softmax([2y, −2y]), y = W x + b",
    reference="flash-linear-attention HedgehogFeatureMap",
    deviations="the factor 2 is that of flash-linear-attention, W and b are "
    "of each head; trained with the task alone, not to mimic the weights of softmax attention; "
    "rotary positions as in linear",
)
class HedgehogAttention(KernelAttention):
    """Linear attention with features that each head learns, as spiky as those of softmax."""

    decided_options = ("feature_map",)

    def __init__(self, **options: Any) -> None:
        super().__init__(feature_map=HedgehogFeatures, **options)
