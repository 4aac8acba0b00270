"""Mixing by the Fourier transform (Lee-Thorp et al. 2021)."""

import math
from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.base import Attention
from attention_zoo.caches import Cache
from attention_zoo.masks import Mask
from attention_zoo.precision import autocast_disabled, upcast
from attention_zoo.zoo import ATTENTION


@ATTENTION.register(
    name="fourier",
    also_called=("fnet",),
    paper="Lee-Thorp et al. 2021, arXiv 2105.03824",
    equation="Re(F_n X F_d), discrete Fourier transforms over n tokens and d channels",
    reference="transformers FNetBasicFourierTransform",
    deviations="the transform is over the real tokens of each packed sequence, where theirs "
    "includes padding, and then costs length²; padded tokens get zeros",
    roles=("global",),
    masks=("key_mask", "segment_ids"),
    positions=("positions", "embeddings"),
    weights="signed",
    cost="t log t",
)
class FourierAttention(Attention):
    """A control without parameters, whose weights depend on positions alone.

        Re(F_n X F_d),   (F_n)_jk = exp(−2πi jk/n)

    It is not normalised, so that outputs are about √(nd) times as large as inputs. Its map has two
    "heads", the cosines and sines of F_n; their values are the real and the imaginary part of
    X F_d, and the output is their sum. Positions count the real tokens.
    """

    decided_options = ("heads", "kv_heads", "head_dim", "bias")

    def __init__(self, **options: Any) -> None:
        super().__init__(heads=2, head_dim=options["dim"], **options)

    def create_projections(self, bias: bool) -> None:
        """Create none."""

    def attend_tokens(
        self, x: Tensor, context: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None
    ) -> Tensor:
        if mask.names:
            # Rows of different lengths need different transforms: multiply by their matrices.
            with autocast_disabled(x):
                weights = self.compute_map(x, x, mask, positions)
                return weights @ self.compute_values(x, mask, positions)
        return torch.fft.fft2(upcast(x), dim=(1, 2)).real[:, None]

    def compute_map(self, x: Tensor, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        """Compute cos(2πjk/n) and sin(2πjk/n) for queries at j and keys at k of n tokens."""
        length, dtype = x.shape[1], upcast(x).dtype
        columns = torch.arange(length, device=x.device)[None, None]
        visible = mask.gather(columns, columns, length)
        # A padded query is not among the tokens that it sees.
        mutual = visible & visible.transpose(-2, -1)
        position = mutual.tril(-1).sum(dim=-1)
        number = mutual.sum(dim=-1).clamp(min=1)[..., None]
        # In whole numbers: a large angle would be inexact in float32.
        products = position[..., :, None] * position[..., None, :] % number
        angles = 2 * math.pi * products.to(dtype) / number
        waves = torch.cat([angles.cos(), angles.sin()], dim=1) * mutual
        return waves.expand(len(x), -1, -1, -1)

    def compute_values(self, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        """Compute the real and the imaginary part of X F_d, [b 2 k d]."""
        channels = torch.fft.fft(upcast(source), dim=-1)
        return torch.stack([channels.real, channels.imag], dim=1)

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        """Compute Re((cos − i sin)(a + i b)) = cos a + sin b."""
        return attended.sum(dim=1).to(x.dtype)

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Transform each set of tokens that see one another by itself."""
        out = torch.zeros_like(x)
        for b in range(len(x)):
            for seen in visible[b].unique(dim=0):
                tokens = seen.nonzero()[:, 0]
                left, right = (naive_fourier_matrix(number) for number in (len(tokens), self.dim))
                part = left @ x[b, tokens].to(left.dtype) @ right
                out[b, tokens] = part.real.to(x.dtype)
        return out


def naive_fourier_matrix(number: int) -> Tensor:
    """Compute exp(−2πi jk/n), [n n]."""
    columns = torch.arange(number, dtype=torch.float64)
    angles = -2 * math.pi * columns[:, None] * columns / number
    return torch.polar(torch.ones_like(angles), angles)
