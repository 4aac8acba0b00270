"""Rotary positions (Su et al. 2021)."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from attention_zoo.errors import UserError
from attention_zoo.position.base import PositionalEncoding, check_base
from attention_zoo.zoo import POSITION

Layout = Literal["half_split", "interleaved"]


@POSITION.register(
    name="rotary",
    also_called=("rope",),
    paper="Su et al. 2021, arXiv 2104.09864, eq. 34",
    equation="q_t R_t, k_s R_s: their product depends on t − s",
    reference="transformers LlamaAttention",
    acts=("heads",),
)
class RotaryEncoding(PositionalEncoding):
    """Rotates pairs of channels of queries and keys by angles t·ω_i, with ω_i = base^(−2i/c).

    The product of a query at t and a key at s then depends on t − s only. Values are not rotated.
    Angles are computed in float32 at least.

    A variant overrides the frequencies, the magnitude, or the width of the rotated part of a head.

    Args:
        base: the wavelengths run from 2π to base·2π tokens.
        layout: which channels make pair i. `half_split`: i and i + c/2, as in Llama; `interleaved`:
            2i and 2i + 1, as in the paper. They differ by a permutation of the channels.
    """

    def __init__(
        self, *, base: float = 10000.0, layout: Layout = "half_split", **sizes: Any
    ) -> None:
        super().__init__(**sizes)
        if layout not in get_args(Layout):
            raise UserError(f"layout must be one of {', '.join(get_args(Layout))}, got {layout!r}.")
        check_base(base)
        self.base = base
        self.layout = layout
        if self.width % 2:
            raise UserError(
                f"position={self.card.name} rotates pairs of channels: it needs an even head "
                f"width, got {self.head_dim}."
            )

    @property
    def width(self) -> int:
        """Return how many channels of a head are rotated."""
        return self.head_dim

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        waves = self.waves(positions, self.frequencies(q))
        return self.rotate_pairs(q, *waves), self.rotate_pairs(k, *waves)

    def rotate_back(self, x: Tensor, positions: Tensor) -> Tensor:
        # The transpose of a pair's matrix is that of its mirror image, mirrored back.
        channels = torch.arange(x.shape[-1], device=x.device)
        if self.layout == "half_split":
            is_second = (channels >= self.width // 2) & (channels < self.width)
        else:
            is_second = channels % 2 == 1
        mirrored = torch.where(is_second, -x, x)
        rotated, _ = self.rotate(mirrored, mirrored[:, :0], positions)
        return torch.where(is_second, -rotated, rotated)

    def exponents(self, x: Tensor) -> Tensor:
        """Return 2i/c of every pair, [c/2], on the device of x, in float32 at least."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return torch.arange(0, self.width, 2, device=x.device, dtype=wide) / self.width

    def frequencies(self, x: Tensor) -> Tensor:
        """Return ω_i of every pair, [c/2], on the device of x, in float32 at least."""
        return self.base ** -self.exponents(x)

    def waves(self, positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [b|1 1 t c/2] of positions [b|1 t] times frequencies [… c/2]."""
        angles = positions[:, None, :, None] * frequencies
        return self.magnitude * angles.cos(), self.magnitude * angles.sin()

    def rotate_pairs(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate the pairs of x [b h t c] by angles with these cosines and sines, [b|1 1 t c/2]."""
        # x ⊙ (cos, cos) + partner ⊙ (−sin, sin): whole heads in few operations.
        if self.layout == "half_split":
            partner = x.roll(x.shape[-1] // 2, dims=-1)
            cos, sin = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
        else:
            partner = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
            cos, sin = (torch.stack(x, dim=-1).flatten(-2) for x in ((cos, cos), (-sin, sin)))
        return torch.addcmul(x * cos, partner, sin).to(x.dtype)

    def naive_rotate(
        self, x: Tensor, positions: Tensor, *, head: int, length: int, of: Literal["query", "key"]
    ) -> Tensor:
        """Multiply pairs of channels, as complex numbers, by exp(i·t·ω)."""
        rotated, frequencies = x.clone(), self.naive_frequencies(length)
        for i, frequency in enumerate(frequencies):
            pair = [i, i + len(frequencies)] if self.layout == "half_split" else [2 * i, 2 * i + 1]
            numbers = torch.complex(*x[..., pair].unbind(-1))
            waves = torch.exp(1j * positions.to(x.dtype) * frequency)
            numbers = numbers * waves * self.naive_magnitude()
            rotated[..., pair] = torch.view_as_real(numbers)
        return rotated

    def naive_frequencies(self, length: int) -> list[float]:
        """Return ω_i of every pair, for a query that is the last of `length` tokens."""
        return [self.base ** (-2 * i / self.head_dim) for i in range(self.head_dim // 2)]
