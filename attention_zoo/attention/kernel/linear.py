"""Linear attention (Katharopoulos et al. 2020)."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import elu

from attention_zoo.attention.kernel.base import (
    FeatureMap,
    FeatureMapFactory,
    KernelAttention,
    register_kernel,
)
from attention_zoo.attention.kernel.cosformer import CosformerFeatures
from attention_zoo.attention.kernel.hedgehog import HedgehogFeatures
from attention_zoo.attention.kernel.performer import PerformerFeatures
from attention_zoo.attention.kernel.rebased import RebasedFeatures
from attention_zoo.attention.kernel.taylor import TaylorFeatures
from attention_zoo.errors import Unsupported
from attention_zoo.zoo import unknown_name_message

# Of float32: what is smaller, elu(x) + 1 rounds to zero.
SMALLEST_ELU = 2.0**-24


class EluFeatures(FeatureMap):
    """φ(x) = elu(x) + 1 (Katharopoulos et al. 2020, arXiv 2006.16236, eq. 7).

    Features are 2⁻²⁴ at least, so that a query without a positive channel still has weights.
    """

    def map_queries(self, q: Tensor, positions: Tensor | None) -> Tensor:
        return (elu(q) + 1.0).clamp(min=SMALLEST_ELU)

    def naive_features(self, x: Tensor, positions: Tensor, of: Literal["query", "key"]) -> Tensor:
        return torch.where(x > 0, x + 1, torch.exp(x)).clamp(min=SMALLEST_ELU)


FEATURE_MAPS: dict[str, FeatureMapFactory] = {
    "elu": EluFeatures,
    "performer": PerformerFeatures,
    "cosformer": CosformerFeatures,
    "taylor": TaylorFeatures,
    "rebased": RebasedFeatures,
    "hedgehog": HedgehogFeatures,
}


@register_kernel(
    name="linear",
    also_called=("linear_transformer",),
    paper="Katharopoulos et al. 2020, arXiv 2006.16236, eq. 9 to 12",
    equation="φ(q)(Σ φ(k)ᵀv) / φ(q) Σ φ(k), φ(x) = elu(x) + 1",
    reference="flash-linear-attention naive_recurrent_linear_attn",
    deviations="rotary positions rotate φ(q) and φ(k) in the numerator only (Su et al. 2021, "
    "arXiv 2104.09864, eq. 19); packed sequences in cross-attention cost length²",
)
class LinearAttention(KernelAttention):
    """Attention whose weights are products of features, so that the keys can be summed first.

        out_i = φ(q_i) S / φ(q_i) z,   S = Σ_j φ(k_j)ᵀ v_j,   z = Σ_j φ(k_j)

    Training runs over chunks: inside a chunk as a masked product, before it by the state (S, z).
    Decoding is the same with chunks as they come. Features and sums are in float32 at least.

    Args:
        feature_map: φ, `elu`, `performer`, `cosformer`, `taylor`, `rebased` or `hedgehog`, each
            with the default options of its entry in the zoo; or a factory of a `FeatureMap`.
    """

    def __init__(self, *, feature_map: str | FeatureMapFactory = "elu", **options: Any) -> None:
        if isinstance(feature_map, str):
            if feature_map not in FEATURE_MAPS:
                raise Unsupported(unknown_name_message("feature_map", feature_map, [*FEATURE_MAPS]))
            feature_map = FEATURE_MAPS[feature_map]
        super().__init__(feature_map=feature_map, **options)
