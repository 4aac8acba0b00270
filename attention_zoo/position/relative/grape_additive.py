"""Additive GRAPE, group representational positions as biases (Zhang et al. 2025)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from attention_zoo.position.base import NaiveScoreInputs, PositionalEncoding, ScoreInputs
from attention_zoo.position.bias.alibi import compute_slopes
from attention_zoo.precision import upcast
from attention_zoo.zoo import POSITION

EPSILON = 1e-6  # the least length of a direction


@POSITION.register(
    name="grape_additive",
    also_called=("grape",),
    paper="Zhang et al. 2025, arXiv 2512.07805 (GRAPE-A, gated by queries and keys), and the "
    "authors' code",
    equation="q_t·k_s/√c − |t − s|·ω_h·m_h·(softplus(v_h·q_t/√c) + softplus(u_h·k_s/√c)), "
    "|u| = |v| = 1",
    reference="closed form",
    acts=("content",),
    per_layer=True,
    deviations="without causality the distance is symmetric, |t − s|",
)
class GrapeAdditiveEncoding(PositionalEncoding):
    """Lowers scores in proportion to the distance, as steeply as query and key want.

        b_ts = −|t − s|·ω_h·m_h·(softplus(v_h·q_t/√c) + softplus(u_h·k_s/√c))

    with the slopes m of `alibi`, a learned ω_h = softplus(ω̃_h) that starts at 1, and two learned
    directions of unit length for each head of a layer. A key lasts long whose projection is small;
    a query looks far whose projection is small. Biases are in float32 at least.
    """

    # Only their angles count, which decay would not change.
    no_decay = ("query_direction", "key_direction")

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.raw_rate = nn.Parameter(torch.full((self.heads,), math.log(math.expm1(1.0))))
        self.query_direction = nn.Parameter(torch.empty(self.heads, self.head_dim))
        self.key_direction = nn.Parameter(torch.empty(self.heads, self.head_dim))
        for direction in (self.query_direction, self.key_direction):
            nn.init.normal_(direction, std=self.head_dim**-0.5)

    def content_bias(self, inputs: ScoreInputs) -> Tensor:
        rates = softplus(upcast(self.raw_rate))
        rates = rates * rates.new_tensor(compute_slopes(self.heads))
        of_query = self.gate(inputs.q, self.query_direction)[:, :, :, None]
        of_key = self.gate(inputs.k, self.key_direction)[:, :, None, :]
        distance = (inputs.q_positions[:, :, None] - inputs.k_positions[:, None, :]).abs()
        return -distance[:, None] * rates[:, None, None] * (of_query + of_key)

    def gate(self, x: Tensor, direction: Tensor) -> Tensor:
        """Compute softplus(u·x/√c) of heads x [b h t c]: [b h t]."""
        unit = normalize(upcast(direction), dim=-1, eps=EPSILON)[:, None]
        return softplus((upcast(x) * unit).sum(dim=-1) * self.head_dim**-0.5)

    def naive_bias(self, inputs: NaiveScoreInputs) -> Tensor:
        power = 2 ** int(math.log2(self.heads))
        exponent = inputs.head + 1 if inputs.head < power else inputs.head - power + 0.5
        rate = torch.log(1 + torch.exp(self.raw_rate[inputs.head])) * 2.0 ** (-8 * exponent / power)
        gates = torch.zeros_like(inputs.distances)
        for x, directions in (
            (inputs.query[None], self.query_direction),
            (inputs.keys, self.key_direction),
        ):
            direction = directions[inputs.head]
            unit = direction / torch.sqrt((direction**2).sum())
            gates = gates + torch.log(1 + torch.exp(x @ unit / math.sqrt(self.head_dim)))
        return -inputs.distances.abs() * rate * gates
