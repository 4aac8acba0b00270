"""Data-adaptive positional encoding, DAPE (Zheng et al. 2024)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, linear

from attention_zoo.errors import Unsupported, check_positive
from attention_zoo.position.base import NaiveScoreInputs, PositionalEncoding, ScoreInputs
from attention_zoo.precision import autocast_disabled, upcast
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="dape",
    paper="Zheng et al. 2024, arXiv 2405.14722",
    equation="S + B + f(S, B), S = QKᵀ/√c, B a bias of the positions, f an MLP over the heads",
    reference="closed form",
    acts=("content",),
    per_layer=True,
    deviations="the MLP's output has no bias, which would add the same to all scores of a head",
)
class DapeEncoding(PositionalEncoding):
    """Corrects a bias of the positions by an MLP that sees the scores and biases of all heads.

        S_ts + B_ts + W₂ LeakyReLU(W₁ [S_ts; B_ts] + b₁),   S_ts = q_t·k_s/√c

    for each pair of a query and a key by itself. So the bias of a distance depends on the content,
    and on the other heads. The MLP is in float32 at least; it takes `hidden` numbers for each pair.

    Args:
        encoding: name of the encoding that gives B, with its default options: one that acts on
            scores by positions alone.
        hidden: width of the MLP.
    """

    def __init__(self, *, encoding: str = "kerple", hidden: int = 32, **sizes: Any) -> None:
        super().__init__(**sizes)
        check_positive(hidden=hidden)
        inner = POSITION[encoding]
        if POSITION.card(encoding).acts != ("scores",):
            legal = [name for name in POSITION if POSITION.card(name).acts == ("scores",)]
            raise Unsupported(
                "position=dape needs an encoding that acts on scores by positions alone, got "
                f"encoding={encoding}. Choices: {', '.join(legal)}."
            )
        self.inner: PositionalEncoding = inner(**sizes)
        self.expand = nn.Linear(2 * self.heads, hidden)
        self.contract = nn.Linear(hidden, self.heads, bias=False)
        own = self.inner.card
        card = replace(self.card, roles=own.roles, relative=own.relative)
        if card != self.card:
            self.card = card

    def content_bias(self, inputs: ScoreInputs) -> Tensor:
        bias = self.inner.score_bias(inputs.q_positions, inputs.k_positions)
        assert bias is not None
        scores = upcast(inputs.q @ inputs.k.transpose(-2, -1) * inputs.scale)
        bias = bias.to(scores.dtype)
        with autocast_disabled(scores):
            of_scores, of_bias = upcast(self.expand.weight).split(self.heads, dim=1)
            # Without a sum over rows that share their positions.
            hidden = linear(bias.movedim(1, -1), of_bias, upcast(self.expand.bias))
            hidden = leaky_relu(hidden + linear(scores.movedim(1, -1), of_scores))
            return bias + linear(hidden, upcast(self.contract.weight)).movedim(-1, 1)

    def naive_bias(self, inputs: NaiveScoreInputs) -> Tensor:
        heads = range(self.heads)
        products = [inputs.scale * (inputs.all_keys[h] @ inputs.all_queries[h]) for h in heads]
        zeros = torch.zeros_like(inputs.distances)
        biases = [zeros + self.inner.naive_bias(inputs._replace(head=h)) for h in heads]
        hidden = torch.stack([*products, *biases], dim=-1) @ self.expand.weight.T + self.expand.bias
        hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
        return biases[inputs.head] + hidden @ self.contract.weight[inputs.head]
