"""Attention by squares with a learned minimum (Aksenov et al. 2024)."""

from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.functional import layer_norm, pad

from attention_zoo.attention import naive
from attention_zoo.attention.kernel.base import (
    FeatureMap,
    KernelAttention,
    register_kernel,
    squares,
)
from attention_zoo.errors import UserError


class RebasedFeatures(FeatureMap):
    """The square of a product, with a learned minimum of 0.

        κ(q, k) = (q'·k')²/n + ε,   q' = a_q ⊙ norm(q) + b_q,   k' = a_k ⊙ norm(k) + b_k

    (Aksenov et al. 2024, arXiv 2402.10644). With ε = 0.01, a query that is orthogonal to all keys
    attends to them evenly; without it, its weights would be quotients of rounding errors, and its
    gradients far larger than all others.
    """

    rotate_inputs = True
    floor = 1e-2

    def __init__(self, *, feature_dim: int = 16, **options: Any) -> None:
        super().__init__(**options)
        if feature_dim < 2:
            raise UserError(f"feature_dim must be at least 2, to be normed, got {feature_dim}.")
        self.input_dim = feature_dim
        self.num_features = feature_dim * (feature_dim + 1) // 2 + 1
        self.query_norm = nn.LayerNorm(feature_dim)
        self.key_norm = nn.LayerNorm(feature_dim)

    def prepare_query(self, q: Tensor) -> Tensor:
        return apply_norm(q, self.query_norm)

    def prepare_key(self, k: Tensor) -> Tensor:
        return apply_norm(k, self.key_norm)

    def map_queries(self, q: Tensor, positions: Tensor | None) -> Tensor:
        return pad(squares(q * self.input_dim**-0.25), (0, 1), value=self.floor**0.5)

    def naive_prepare(self, x: Tensor, of: Literal["query", "key"]) -> Tensor:
        norm = {"query": self.query_norm, "key": self.key_norm}[of]
        return norm.weight * naive.layer_norm(x, epsilon=1e-5) + norm.bias

    def naive_kernel(self, q: Tensor, k: Tensor, positions: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1)) ** 2 / self.input_dim + self.floor


def apply_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Apply a norm in the type of x, which may be wider than that of the parameters."""
    weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
    return layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


@register_kernel(
    name="rebased",
    paper="Aksenov et al. 2024, arXiv 2402.10644",
    equation="Σ (q'·k'_j)² v_j, normalised, q' = a_q ⊙ norm(q) + b_q, k' = a_k ⊙ norm(k) + b_k",
    reference="flash-linear-attention naive_parallel_rebased",
    deviations="ReBased's linear attention alone, without the convolutions of its other "
    "layers; ε is added to each weight, not to their sum; flash-linear-attention's layer "
    "shares a and b between q and k",
)
class RebasedAttention(KernelAttention):
    """Linear attention with a squared product, which can be zero, as Based's features cannot.

    Args:
        feature_dim: n, channels of a query and a key. There are n(n + 1)/2 + 1 features.
    """

    decided_options = ("feature_map",)

    def __init__(self, *, feature_dim: int = 16, **options: Any) -> None:
        super().__init__(feature_map=partial(RebasedFeatures, feature_dim=feature_dim), **options)
