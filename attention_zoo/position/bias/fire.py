"""Functional interpolation for relative positions (Li et al. 2023)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from attention_zoo.errors import UserError
from attention_zoo.position.base import NaiveScoreInputs, PositionalEncoding
from attention_zoo.precision import autocast_disabled, upcast
from attention_zoo.zoo import POSITION

# Keeps the quotient finite, should the threshold be learned to be 0.
SMALL = 1e-6


@POSITION.register(
    name="fire",
    paper="Li et al. 2023, arXiv 2310.04418",
    equation="q_t·k_s/√c + MLP_h(ψ(t − s)/ψ(max(L, t))), ψ(x) = log(c|x| + 1)",
    reference="closed form",
    acts=("scores",),
    per_layer=True,
    relative=False,
    deviations="the MLP's output has no bias, which would add the same to all scores of a "
    "head; without causality the distance is symmetric, and its normaliser max(L, t, s)",
)
class FireEncoding(PositionalEncoding):
    """Adds a learned function of the distance, divided by the query's position.

        MLP(ψ(t − s)/ψ(max(L, t))),   ψ(x) = log(|c·x| + 1)

    The quotient is between 0 and 1, however long the sequence is. The MLP has a layer of ReLUs and
    an output for each head. c and L, the threshold below which the position of the query does not
    matter, are learned too; each layer has its own.

    Args:
        hidden: width of the MLP.
        log_scale: initial value of c.
        threshold: initial value of L, in tokens; default: a quarter of `original_length`, as the
            paper has 512 of 2,048.
        original_length: the length of sequences in training, in tokens.
    """

    def __init__(
        self,
        *,
        hidden: int = 32,
        log_scale: float = 0.1,
        threshold: float | None = None,
        original_length: int | None = 512,
        **sizes: Any,
    ) -> None:
        super().__init__(**sizes)
        if threshold is None:
            if original_length is None:
                raise UserError(
                    "position=fire needs a threshold, or original_length: the length in tokens "
                    "that the model is trained at."
                )
            threshold = original_length / 4
        for name, value in (("hidden", hidden), ("log_scale", log_scale), ("threshold", threshold)):
            if value <= 0:
                raise UserError(f"position=fire needs a {name} above 0, got {value}.")
        self.threshold = threshold
        self.log_scale = nn.Parameter(torch.tensor(float(log_scale)))
        # A multiple of what it starts from, so that a step of an optimiser moves it by a share.
        self.threshold_factor = nn.Parameter(torch.tensor(1.0))
        self.expand = nn.Linear(1, hidden)
        self.contract = nn.Linear(hidden, self.heads, bias=False)

    def score_bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        wide = torch.promote_types(self.log_scale.dtype, torch.float32)
        i, j = q_positions[:, :, None], k_positions[:, None, :]
        last = i if self.role == "causal" else torch.maximum(i, j)
        threshold = (self.threshold_factor * self.threshold).abs()
        normaliser = self.compress(torch.maximum(last.to(wide), threshold)) + SMALL
        share = self.compress((i - j).to(wide)) / normaliser
        # In half precision neighbouring distances would be one.
        with autocast_disabled(share):
            expand, contract = upcast(self.expand.weight), upcast(self.contract.weight)
            hidden = linear(share[..., None], expand, upcast(self.expand.bias)).relu()
            return linear(hidden, contract).movedim(-1, 1)

    def compress(self, x: Tensor) -> Tensor:
        """Compute ψ."""
        return torch.log1p((self.log_scale * x).abs())

    def naive_bias(self, inputs: NaiveScoreInputs) -> Tensor:
        def compress(x: Tensor) -> Tensor:
            return torch.log((self.log_scale * x).abs() + 1)

        last = inputs.q_position.expand_as(inputs.k_positions)
        if self.role != "causal":
            last = torch.maximum(last, inputs.k_positions)
        threshold = (self.threshold_factor * self.threshold).abs()
        shares = compress(inputs.distances) / (compress(torch.maximum(last, threshold)) + SMALL)
        hidden = (shares[:, None] * self.expand.weight[:, 0] + self.expand.bias).clamp(min=0)
        return hidden @ self.contract.weight[inputs.head]
