"""Attention by rectified features and distance (Qin et al. 2022)."""

import math
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from attention_zoo.attention.kernel.base import FeatureMap, KernelAttention, register_kernel
from attention_zoo.errors import UserError, check_positive

# So that a query or a key without a positive channel still has features.
EPSILON = 1e-6


class CosformerFeatures(FeatureMap):
    """Products of rectified channels, smaller for distant tokens.

        κ(q_i, k_j) = relu(q_i)·relu(k_j) cos(π/2 · (i − j)/M)

    (Qin et al. 2022, arXiv 2202.08791). As cos(a − b) = cos a cos b + sin a sin b, φ(x_i) joins
    relu(x_i) cos(πi/2M) and relu(x_i) sin(πi/2M). M is `max_length`: beyond it weights would become
    negative. Cross-attention, whose sides share no positions, has no M and no cosine.
    """

    def __init__(self, *, max_length: int | None = 512, **options: Any) -> None:
        super().__init__(**options)
        if max_length is not None:
            check_positive(max_length=max_length)
        if options["role"] != "cross":
            if max_length is None:
                raise UserError(
                    "attention=cosformer needs max_length: the length in tokens of the longest "
                    "sequence that it is trained on or reads."
                )
            self.max_length = max_length
            self.num_features = 2 * self.input_dim

    def map_queries(self, q: Tensor, positions: Tensor | None) -> Tensor:
        rectified = q.relu() + EPSILON
        if self.max_length is None:
            return rectified
        assert positions is not None
        angles = math.pi / 2 * positions[:, None, :, None].to(q.dtype) / self.max_length
        return torch.cat([rectified * angles.cos(), rectified * angles.sin()], dim=-1)

    def naive_features(self, x: Tensor, positions: Tensor, of: Literal["query", "key"]) -> Tensor:
        assert self.max_length is not None
        rectified = x.clamp(min=0) + EPSILON
        angles = math.pi * positions[:, None, :, None].to(x.dtype) / (2 * self.max_length)
        return torch.cat([rectified * torch.cos(angles), rectified * torch.sin(angles)], dim=-1)

    def naive_kernel(self, q: Tensor, k: Tensor, positions: Tensor) -> Tensor:
        products = (q.clamp(min=0) + EPSILON) @ (k.clamp(min=0) + EPSILON).transpose(-2, -1)
        if self.max_length is None:
            return products
        distances = positions[:, None, :, None] - positions[:, None, None, :]
        return products * torch.cos(math.pi / 2 * distances.to(q.dtype) / self.max_length)


@register_kernel(
    name="cosformer",
    paper="Qin et al. 2022, arXiv 2202.08791",
    equation="Σ relu(q_i)·relu(k_j) cos(π/2·(i − j)/M) v_j, normalised",
    reference="closed form",
    deviations="M is an option, by default the length in training, not that of each input, so "
    "that decoding agrees; "
    "cross-attention, whose sides share no positions, has no cosine; 10⁻⁶ is added to the "
    "rectified channels, where theirs bounds the denominator; rotary positions as in linear",
)
class CosformerAttention(KernelAttention):
    """Products of rectified channels, smaller for distant tokens.

    Args:
        max_length: M, in tokens: the distance at which the weight is zero. A longer input is
            refused. The larger M is beside the sequences, the flatter are the weights.
    """

    decided_options = ("feature_map",)

    def __init__(self, *, max_length: int | None = 512, **options: Any) -> None:
        super().__init__(feature_map=partial(CosformerFeatures, max_length=max_length), **options)
