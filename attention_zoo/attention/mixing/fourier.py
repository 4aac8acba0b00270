"""Mixing by the Fourier transform (Lee-Thorp et al. 2021)."""

import math
from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.base import Attention
from attention_zoo.attention.precision import autocast_disabled, upcast
from attention_zoo.caches import Cache
from attention_zoo.masks import Mask
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="fourier",
        paper="Lee-Thorp et al. 2021, arXiv 2105.03824",
        equation="Re(F_n X F_d), discrete Fourier transforms over n tokens and d channels",
        reference="transformers FNetBasicFourierTransform",
        deviations="the transform is over the real tokens of each packed sequence, where theirs "
        "takes padding in, and then costs length²; padded places get zeros",
        roles=("global",),
        masks=("key_mask", "segment_ids"),
        positions=("positions", "embeddings"),
        weights="signed",
        cost="t log t",
    )
)
class FourierAttention(Attention):
    """What attention is compared with, as nothing in it looks at anything: no parameter, and
    weights that depend on places alone,

        Re(F_n X F_d),   (F_n)_jk = exp(−2πi jk/n)

    not normalised, so that outputs are about √(nd) times as large as inputs. Its map has two
    "heads", the cosines and sines of F_n; their values are the real and the imaginary part of
    X F_d, and the output is their sum. Places are counted over the real tokens.
    """

    decided_options = ("heads", "kv_heads", "head_dim", "bias")

    def __init__(self, **options: Any) -> None:
        super().__init__(heads=2, head_dim=options["dim"], **options)

    def create_projections(self, bias: bool) -> None:
        """It has none."""

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        mask = self.effective_mask(mask, x, context, cache)
        if mask.names:
            # A transform for each number of tokens: by the matrices.
            with autocast_disabled(x):
                return self.finish(self.attention_map(x, mask=mask) @ self.values(x), x)
        return torch.fft.fft2(upcast(x), dim=(1, 2)).real.to(x.dtype)

    def attention_map(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        """cos(2πjk/n) and sin(2πjk/n) for the places j of queries and k of keys among n tokens."""
        mask = self.effective_mask(mask, x, context)
        length, wide = x.shape[1], upcast(x).dtype
        visible = mask.dense(range(length), range(length), device=x.device)
        if visible is None:
            visible = torch.ones(1, 1, length, length, dtype=torch.bool, device=x.device)
        # A padded query is not among the tokens that it might see.
        together = visible & visible.transpose(-2, -1)
        place = together.tril(-1).sum(dim=-1)
        number = together.sum(dim=-1).clamp(min=1)[..., None]
        # In whole numbers: a large angle would be inexact in float32.
        turns = place[..., :, None] * place[..., None, :] % number
        angles = 2 * math.pi * turns.to(wide) / number
        waves = torch.cat([angles.cos(), angles.sin()], dim=1) * together
        return waves.expand(len(x), -1, -1, -1)

    def values(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        """Real and imaginary part of X F_d, [b 2 k d]."""
        channels = torch.fft.fft(upcast(x), dim=-1)
        return torch.stack([channels.real, channels.imag], dim=1)

    def finish(self, attended: Tensor, x: Tensor) -> Tensor:
        """Re((cos − i sin)(a + i b)) = cos a + sin b."""
        return attended.sum(dim=1).to(x.dtype)

    def naive(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        visible: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        """By itself for each set of tokens that see one another, [b q k]."""
        out = torch.zeros_like(x)
        for b in range(len(x)):
            for seen in visible[b].unique(dim=0):
                tokens = seen.nonzero()[:, 0]
                if len(tokens):
                    sequence, channels = fourier_matrix(len(tokens)), fourier_matrix(self.dim)
                    own = x[b, tokens].to(sequence.dtype)
                    at = torch.full_like(tokens, b), tokens
                    out = out.index_put(at, (sequence @ own @ channels).real.to(x.dtype))
        return out


def fourier_matrix(number: int) -> Tensor:
    """[n n], exp(−2πi jk/n)."""
    token_positions = torch.arange(number, dtype=torch.float64)
    angles = -2 * math.pi * token_positions[:, None] * token_positions / number
    return torch.polar(torch.ones_like(angles), angles)
