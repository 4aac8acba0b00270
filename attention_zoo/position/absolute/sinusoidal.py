"""Sinusoidal absolute positions (Vaswani et al. 2017)."""

from typing import Any

import torch
from torch import Tensor

from attention_zoo.errors import UserError
from attention_zoo.position.base import PositionalEncoding, check_base
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="sinusoidal",
    paper="Vaswani et al. 2017, arXiv 1706.03762, §3.5",
    equation="x_t + (…, sin(t·ω_i), cos(t·ω_i), …), ω_i = base^(−2i/d)",
    reference="closed form",
    acts=("embeddings",),
)
class SinusoidalEncoding(PositionalEncoding):
    """Adds, to channels 2i and 2i + 1, sin(t·ω_i) and cos(t·ω_i) with ω_i = base^(−2i/d).

    Sine and cosine are interleaved, as in the paper, which also scales the embeddings by √d.

    Args:
        base: the wavelengths run from 2π to base·2π tokens.
    """

    def __init__(self, *, base: float = 10000.0, **sizes: Any) -> None:
        super().__init__(**sizes)
        if self.dim % 2:
            raise UserError(f"position=sinusoidal needs an even dim, got {self.dim}.")
        check_base(base)
        self.base = base

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + sinusoids(positions, self.dim, self.base, x.dtype).to(x.dtype)


def sinusoids(positions: Tensor, dim: int, base: float, dtype: torch.dtype) -> Tensor:
    """Return the sinusoids [… dim] of positions […], in a type, but in float32 at least."""
    wide = torch.promote_types(dtype, torch.float32)
    steps = torch.arange(0, dim, 2, device=positions.device, dtype=wide)
    angles = positions[..., None].to(wide) * base ** (-steps / dim)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
