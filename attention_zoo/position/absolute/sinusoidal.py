"""Sinusoidal absolute positions (Vaswani et al. 2017)."""

from typing import Any, get_args

import torch
from torch import Tensor

from attention_zoo.errors import UserError
from attention_zoo.position.base import PositionalEncoding, check_base
from attention_zoo.position.rotary.rotary import Layout
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="sinusoidal",
    also_called=("absolute",),
    paper="Vaswani et al. 2017, arXiv 1706.03762, §3.5",
    equation="x_t + (…, sin(t·ω_i), cos(t·ω_i), …), ω_i = base^(−2i/d)",
    reference="closed form",
    acts=("embeddings",),
)
class SinusoidalEncoding(PositionalEncoding):
    """Adds, to channels 2i and 2i + 1, sin(t·ω_i) and cos(t·ω_i) with ω_i = base^(−2i/d).

    The paper also scales the embeddings by √d.

    Args:
        base: the wavelengths run from 2π to base·2π tokens.
        layout: which channels make pair i. `interleaved`: 2i and 2i + 1, as in the paper;
            `half_split`: i and i + d/2, as in its authors' code and in Marian.
    """

    def __init__(
        self, *, base: float = 10000.0, layout: Layout = "interleaved", **sizes: Any
    ) -> None:
        super().__init__(**sizes)
        if layout not in get_args(Layout):
            raise UserError(f"layout must be one of {', '.join(get_args(Layout))}, got {layout!r}.")
        if self.dim % 2:
            raise UserError(f"position=sinusoidal needs an even dim, got {self.dim}.")
        check_base(base)
        self.base = base
        self.layout = layout

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        self.check_embeddings(x, positions)
        waves = sinusoids(positions, self.dim, self.base, x.dtype).to(x.dtype)
        if self.layout == "half_split":
            waves = torch.cat([waves[..., 0::2], waves[..., 1::2]], dim=-1)
        return x + waves


def sinusoids(positions: Tensor, dim: int, base: float, dtype: torch.dtype) -> Tensor:
    """Return the sinusoids [… dim] of positions […], in a type, but in float32 at least."""
    wide = torch.promote_types(dtype, torch.float32)
    steps = torch.arange(0, dim, 2, device=positions.device, dtype=wide)
    angles = positions[..., None].to(wide) * base ** (-steps / dim)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
