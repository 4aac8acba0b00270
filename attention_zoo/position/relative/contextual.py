"""Contextual positions, CoPE (Golovneva et al. 2024)."""

from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.errors import check_positive
from attention_zoo.position.base import NaiveScoreInputs, PositionalEncoding, ScoreInputs
from attention_zoo.precision import upcast
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="contextual",
    also_called=("cope",),
    paper="Golovneva et al. 2024, arXiv 2405.18719",
    equation="q_t·k_s/√c + q_t·e[p_ts], p_ts = Σ_{s≤l≤t} σ(q_t·k_l/√c)",
    reference="x-transformers CoPE",
    deviations="what does not see a key does not count it: neither padding, nor what is packed "
    "beside, nor what a window leaves out",
    acts=("content",),
    roles=("causal",),
    per_layer=True,
)
class ContextualEncoding(PositionalEncoding):
    """Counts, for a query, the tokens back to a key that its gates let through.

        s_ts = q_t·k_s/√c + q_t·e[p_ts],   p_ts = Σ_{s ≤ l ≤ t} g_tl,   g_tl = σ(q_t·k_l/√c)

    over the keys l that the query sees. Between whole numbers e is interpolated; from
    `max_position` on it stays. The heads of a layer share the table e, which starts at zero. Only
    the order of tokens matters, not their positions. Sums are in float32 at least.

    Args:
        max_position: the last row of e; its first is that of 0.
    """

    def __init__(self, *, max_position: int = 64, **sizes: Any) -> None:
        super().__init__(**sizes)
        check_positive(max_position=max_position)
        self.max_position = max_position
        self.table = nn.Parameter(torch.zeros(max_position + 1, self.head_dim))

    def content_bias(self, inputs: ScoreInputs) -> Tensor:
        gates = torch.sigmoid(inputs.q @ inputs.k.transpose(-2, -1) * inputs.scale)
        counts = self.count_positions(gates, inputs.visible)
        products = inputs.q @ self.table.T.to(inputs.q.dtype)
        low, high = (products.gather(-1, row.long()) for row in (counts.floor(), counts.ceil()))
        return torch.lerp(low, high, counts.frac().to(products.dtype))

    def count_positions(self, gates: Tensor, visible: Tensor | None) -> Tensor:
        """Compute p from the gates [b h q k] of every key."""
        gates = upcast(gates)
        if visible is not None:
            gates = gates.masked_fill(~visible, 0.0)
        # A sum from the query back: a difference of sums from the start would lose digits.
        return gates.flip(-1).cumsum(dim=-1).flip(-1).clamp(max=self.max_position)

    def naive_bias(self, inputs: NaiveScoreInputs) -> Tensor:
        gates = 1 / (1 + torch.exp(-(inputs.keys @ inputs.query) * inputs.scale))
        biases = []
        for s in range(len(inputs.keys)):
            position = gates[s:].sum().clamp(max=self.max_position)
            below, above = int(position.floor()), int(position.ceil())
            share = position - below
            row = (1 - share) * self.table[below] + share * self.table[above]
            biases.append(inputs.query @ row)
        return torch.stack(biases)
