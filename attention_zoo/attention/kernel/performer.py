"""Attention by random features (Choromanski et al. 2021)."""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from attention_zoo.attention.kernel.base import FeatureMap, KernelAttention, register_kernel
from attention_zoo.errors import check_positive

# The largest exponent of a feature: e⁸⁰, times e⁸ keys that all have it, is a number of float32.
MAX_EXPONENT = 80.0
# Added to the features of keys, so that keys that are far too long get equal weights, not none.
# Smaller than the authors' 10⁻⁴, as here no key's features are scaled by those of the largest.
EPSILON = 1e-20


class PerformerFeatures(FeatureMap):
    """FAVOR+ (Choromanski et al. 2021, arXiv 2009.14794): with x scaled by c^(−1/4).

        φ(x)_i = exp(ω_i·x − |x|²/2) / √m,   so that E φ(q)·φ(k) = exp(q·k/√c)

    The heads share m directions ω, which are drawn once, orthogonal to each other in blocks of c,
    each as long as a Gaussian vector. Exponents are kept small without a look at other tokens: a
    query's largest exponent is subtracted, which cancels in the weights; for the keys a constant
    is, as no k makes ω·k − |k|²/2 larger than |ω|²/2.
    """

    directions: Tensor

    def __init__(self, *, features: int = 128, seed: int = 0, **options: Any) -> None:
        super().__init__(**options)
        check_positive(features=features)
        self.num_features = features
        # Drawn on the CPU: the same numbers wherever the module is built.
        directions = draw_orthogonal_directions(features, self.input_dim, seed)
        self.register_buffer("directions", torch.empty(directions.shape).copy_(directions))

    def map_queries(self, q: Tensor, positions: Tensor | None) -> Tensor:
        exponents = self.exponents(q)
        largest = exponents.detach().amax(dim=-1, keepdim=True)
        return (exponents - largest).exp() * self.num_features**-0.5

    def map_keys(self, k: Tensor, positions: Tensor | None) -> Tensor:
        largest = self.directions.square().sum(dim=-1).max() / 2
        shift = (largest - MAX_EXPONENT).clamp(min=0.0)
        return ((self.exponents(k) - shift).exp() + EPSILON) * self.num_features**-0.5

    def exponents(self, x: Tensor) -> Tensor:
        """Compute ω·x − |x|²/2 for x [b h t c]: [b h t m]."""
        x = x * self.input_dim**-0.25
        return x @ self.directions.to(x.dtype).T - x.square().sum(dim=-1, keepdim=True) / 2

    def naive_features(self, x: Tensor, positions: Tensor, of: Literal["query", "key"]) -> Tensor:
        """Compute φ without the shifts of exponents, which cancel in the weights, and ε."""
        x = x / self.input_dim ** (1 / 4)
        products = torch.einsum("m c, b h t c -> b h t m", self.directions.to(x.dtype), x)
        powers = torch.exp(products - (x**2).sum(dim=-1, keepdim=True) / 2)
        return powers / self.num_features ** (1 / 2)


def draw_orthogonal_directions(number: int, dim: int, seed: int) -> Tensor:
    """Draw vectors [number dim] in float64: each Gaussian, orthogonal in blocks of `dim`."""
    generator = torch.Generator().manual_seed(seed)

    def gaussian() -> Tensor:
        return torch.randn(dim, dim, generator=generator, dtype=torch.float64, device="cpu")

    blocks = []
    for _ in range(-(-number // dim)):
        rotation, triangle = torch.linalg.qr(gaussian())
        # Without the signs, the decomposition would prefer some rotations.
        rotation = rotation * triangle.diagonal().sign()
        blocks.append(rotation.T * gaussian().norm(dim=-1, keepdim=True))
    return torch.cat(blocks)[:number]


@register_kernel(
    name="performer",
    also_called=("favor",),
    paper="Choromanski et al. 2021, arXiv 2009.14794",
    equation="φ(q)(Σ φ(k)ᵀv) / φ(q) Σ φ(k), φ(x)_i = exp(ω_i·x c^(−1/4) − |x|²/2√c)",
    reference="closed form",
    deviations="the features are drawn once, by a seed, and not again in training; a constant "
    "keeps keys from overflow, not the largest of all keys, which would show the future; so ε is "
    "10⁻²⁰, not 10⁻⁴, and added to the features of keys only; rotary positions as in linear",
)
class PerformerAttention(KernelAttention):
    """FAVOR+: positive random features estimate the weights of softmax attention without bias.

    Args:
        features: m, the number of features of a head. The error falls with 1/√m.
        seed: of their draw. They are part of the state dict.
    """

    decided_options = ("feature_map",)

    def __init__(self, *, features: int = 128, seed: int = 0, **options: Any) -> None:
        feature_map = partial(PerformerFeatures, features=features, seed=seed)
        super().__init__(feature_map=feature_map, **options)
