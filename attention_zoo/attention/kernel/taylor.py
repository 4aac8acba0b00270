"""Attention by the exponential's Taylor series (Arora et al. 2024)."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.kernel.base import (
    FeatureMap,
    KernelAttention,
    register_kernel,
    squares,
)
from attention_zoo.errors import check_positive


class TaylorFeatures(FeatureMap):
    """The first terms of exp(s), s = q·k/√n (Arora et al. 2024, arXiv 2402.18668).

        κ(q, k) = 1 + s + s²/2,   φ(x) = [1, y, squares(y)/√2] with y = x n^(−1/4)

    Queries and keys have n = `feature_dim` channels each.
    """

    rotate_inputs = True

    def __init__(self, *, feature_dim: int = 16, **options: Any) -> None:
        super().__init__(**options)
        check_positive(feature_dim=feature_dim)
        self.input_dim = feature_dim
        self.num_features = 1 + feature_dim + feature_dim * (feature_dim + 1) // 2

    def map_queries(self, q: Tensor, positions: Tensor | None) -> Tensor:
        y = q * self.input_dim**-0.25
        return torch.cat([torch.ones_like(y[..., :1]), y, squares(y) * 0.5**0.5], dim=-1)

    def naive_kernel(self, q: Tensor, k: Tensor, positions: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.input_dim)
        return 1 + scores + scores**2 / 2


@register_kernel(
    name="taylor",
    also_called=("based",),
    paper="Arora et al. 2024, arXiv 2402.18668",
    equation="Σ (1 + s_j + s_j²/2) v_j, normalised, s_j = q·k_j/√n, q and k of n channels",
    reference="flash-linear-attention naive_parallel_based",
    deviations="Based's linear attention alone, without the sliding windows and convolutions "
    "of its other layers; no ε in the denominator, as 1 + s + s²/2 is at least 1/2",
)
class TaylorAttention(KernelAttention):
    """The linear attention of Based: the first terms of exp, for narrow queries and keys.

    Args:
        feature_dim: n, channels of a query and a key. There are 1 + n + n(n + 1)/2 features.
    """

    decided_options = ("feature_map",)

    def __init__(self, *, feature_dim: int = 16, **options: Any) -> None:
        super().__init__(feature_map=partial(TaylorFeatures, feature_dim=feature_dim), **options)
