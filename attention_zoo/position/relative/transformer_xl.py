"""Relative positions of Transformer-XL (Dai et al. 2019)."""

from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.errors import UserError
from attention_zoo.position.absolute.sinusoidal import sinusoids
from attention_zoo.position.base import (
    NaiveScoreInputs,
    PositionalEncoding,
    ScoreInputs,
    check_base,
)
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="transformer_xl",
    also_called=("relative",),
    paper="Dai et al. 2019, arXiv 1901.02860, §3.3",
    equation="((q_t + u)·k_s + (q_t + v)·W_R R_{t−s})/√c, R sinusoids of the distance",
    reference="transformers XLNetRelativeAttention",
    deviations="sines and cosines of R are interleaved: an order of the columns of W_R; its "
    "shift of scores is replaced by the addition theorem, so positions may be any numbers; "
    "u and v are each layer's own, as in XLNet",
    acts=("content",),
    per_layer=True,
)
class TransformerXLEncoding(PositionalEncoding):
    """Scores of content and of distance, each with a learned bias in place of the query's position.

        s_ts = ((q_t + u)·k_s + (q_t + v)·W_R R_{t−s})/√c

    R has channels sin(n·ω_i) and cos(n·ω_i) for a distance of n tokens, ω_i = base^(−2i/d); u and
    v, [h c], are learned, and W_R, d -> h·c.

    No R_{t−s} is built: by the addition theorem queries are multiplied with W_R, rotated by their
    positions, [b h q d], and multiplied with the sinusoids of keys. Each pair and head takes d
    products, where the paper's shift takes c. Angles are computed in float32 at least.

    Args:
        base: the wavelengths run from 2π to base·2π tokens.
    """

    no_decay = ("query_content_bias", "query_position_bias")

    def __init__(self, *, base: float = 10000.0, **sizes: Any) -> None:
        super().__init__(**sizes)
        if self.dim % 2:
            raise UserError(f"position=transformer_xl needs an even dim, got {self.dim}.")
        check_base(base)
        self.base = base
        self.query_content_bias = nn.Parameter(torch.empty(self.heads, self.head_dim))
        self.query_position_bias = nn.Parameter(torch.empty(self.heads, self.head_dim))
        for bias in (self.query_content_bias, self.query_position_bias):
            nn.init.normal_(bias, std=0.02)
        self.distance = nn.Linear(self.dim, self.heads * self.head_dim, bias=False)

    def content_bias(self, inputs: ScoreInputs) -> Tensor:
        content_bias = self.query_content_bias[:, None].to(inputs.k.dtype)
        of_key = content_bias @ inputs.k.transpose(-2, -1)
        by_head = self.distance.weight.unflatten(0, (self.heads, self.head_dim))
        coefficients = self.rotate_coefficients(
            (inputs.q + self.query_position_bias[:, None]) @ by_head.to(inputs.q.dtype),
            inputs.q_positions,
        )
        waves = self.waves(inputs.k_positions, inputs.q.dtype).transpose(-2, -1)
        of_position = coefficients.to(inputs.q.dtype) @ waves.to(inputs.q.dtype)
        return (of_key + of_position) * inputs.scale

    def waves(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the sinusoids [b|1 1 t d] of positions [b|1 t]."""
        return sinusoids(positions, self.dim, self.base, dtype)[:, None]

    def rotate_coefficients(self, coefficients: Tensor, positions: Tensor) -> Tensor:
        """Convert coefficients [b h q d] of sinusoids of t − s to those of sinusoids of s."""
        waves = self.waves(positions, coefficients.dtype)
        sin, cos = waves[..., 0::2], waves[..., 1::2]
        of_sin, of_cos = coefficients[..., 0::2], coefficients[..., 1::2]
        pairs = of_cos * sin - of_sin * cos, of_sin * sin + of_cos * cos
        return torch.stack(pairs, dim=-1).flatten(-2)

    def naive_bias(self, inputs: NaiveScoreInputs) -> Tensor:
        frequencies = self.base ** (
            -torch.arange(0, self.dim, 2, dtype=inputs.query.dtype) / self.dim
        )
        angles = inputs.distances[:, None] * frequencies
        waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        by_distance = waves @ self.distance.weight.unflatten(0, (self.heads, -1))[inputs.head].T
        of_content = inputs.keys @ self.query_content_bias[inputs.head]
        of_position = by_distance @ (inputs.query + self.query_position_bias[inputs.head])
        return (of_content + of_position) * inputs.scale
