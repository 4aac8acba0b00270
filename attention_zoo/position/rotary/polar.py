"""Polar coordinate positions, PoPE (Gopalakrishnan et al. 2025)."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from attention_zoo.position.rotary.rotary import RotaryEncoding
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="polar",
    also_called=("pope",),
    paper="Gopalakrishnan et al. 2025, arXiv 2509.10534",
    equation="Σ_i softplus(q_ti)·softplus(k_si)·cos((s − t)·ω_i + δ_i)",
    reference="x-transformers Attention(PolarEmbedding)",
    deviations="δ is taken from the phase of queries, not added to that of keys, which gives "
    "the same scores, and each query head its own δ where several share a key",
    acts=("width",),
    per_layer=True,
)
class PolarEncoding(RotaryEncoding):
    """Content decides the magnitudes, the position decides the phases.

        s_ts = Σ_i μ_ti·μ_si·cos((s − t)·ω_i + δ_i),  μ = softplus of the channel

    Each of the c channels is a pair of its own, with a frequency of its own, ω_i = base^(−i/c), so
    that heads become 2c wide. Scores keep the scale 1/√c. Each head of a layer learns phases δ,
    between −2π and 0, which start at 0.
    """

    decided_options = ("layout",)
    no_decay = ("phase",)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.phase = nn.Parameter(torch.zeros(self.heads, 1, self.head_dim))

    @property
    def width(self) -> int:
        return 2 * self.head_dim

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[:, None, :, None] * self.frequencies(q)
        phase = self.phase.clamp(-2 * math.pi, 0.0)
        return to_cartesian(q, angles - phase), to_cartesian(k, angles)

    def naive_rotate(
        self, x: Tensor, positions: Tensor, *, head: int, length: int, of: Literal["query", "key"]
    ) -> Tensor:
        frequencies = self.base ** (-torch.arange(self.head_dim, dtype=x.dtype) / self.head_dim)
        angles = positions[..., None] * frequencies
        if of == "query":
            angles = angles - self.phase[head, 0].clamp(-2 * math.pi, 0.0)
        magnitudes = torch.log(1 + torch.exp(x))
        return torch.cat([magnitudes * torch.cos(angles), magnitudes * torch.sin(angles)], dim=-1)


def to_cartesian(x: Tensor, angles: Tensor) -> Tensor:
    """Convert heads [b h t c] with the angles [b|1 h|1 t c] of their channels to [b h t 2c]."""
    magnitudes = softplus(x.to(angles.dtype))
    return torch.cat([magnitudes * angles.cos(), magnitudes * angles.sin()], dim=-1).to(x.dtype)
