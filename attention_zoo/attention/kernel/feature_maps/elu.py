"""The features of Katharopoulos et al. 2020."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import elu

from attention_zoo.attention.kernel.feature_maps.base import FeatureMap


class EluFeatures(FeatureMap):
    """φ(x) = elu(x) + 1 (Katharopoulos et al. 2020, arXiv 2006.16236, eq. 7)."""

    def map_queries(self, q: Tensor, positions: Tensor | None) -> Tensor:
        return elu(q) + 1.0

    def naive_features(self, x: Tensor, positions: Tensor, of: Literal["query", "key"]) -> Tensor:
        return torch.where(x > 0, x + 1, torch.exp(x))
