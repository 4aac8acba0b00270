"""Norms of queries, keys and latents, computed in float32 at least."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from attention_zoo.precision import upcast


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε) ⊙ w (Zhang and Sennrich 2019, arXiv 1910.07467).

    Args:
        shape: of the weight w, which starts with ones.
        over: dimensions that the mean is taken over.
    """

    def __init__(self, *shape: int, over: tuple[int, ...] = (-1,)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.over = over

    def forward(self, x: Tensor) -> Tensor:
        return (rms_normalise(upcast(x), self.over, epsilon=1e-6) * self.weight).to(x.dtype)


class L2Norm(nn.Module):
    """x / |x|, of each head."""

    def forward(self, x: Tensor) -> Tensor:
        return l2_normalise(upcast(x)).to(x.dtype)


class ScaledL2Norm(nn.Module):
    """g·x / |x| with a learned number g.

    Args:
        start: g at the beginning.
    """

    def __init__(self, start: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(start))

    def forward(self, x: Tensor) -> Tensor:
        return (l2_normalise(upcast(x)) * self.scale).to(x.dtype)


def rms_normalise(x: Tensor, over: tuple[int, ...], *, epsilon: float) -> Tensor:
    """Compute x / √(mean(x²) + ε)."""
    return x * torch.rsqrt(x.square().mean(over, keepdim=True) + epsilon)


def l2_normalise(x: Tensor) -> Tensor:
    """Scale vectors [… c] to length one; zeros stay zeros."""
    return normalize(x, dim=-1)
