"""The sLSTM of xLSTM (Beck et al. 2024)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from attention_zoo.attention.recurrent.base import register_recurrent
from attention_zoo.attention.recurrent.cells import CellAttention, RecurrentCell, States
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.errors import UserError, check_positive
from attention_zoo.precision import safe_divide, upcast


class SLSTMCell(RecurrentCell):
    """The cell of an sLSTM; see `SLSTMAttention`."""

    gates = 4
    num_states = 4

    def __init__(self, dim: int, *, bias: bool) -> None:
        super().__init__(dim, bias=bias)
        del self.hidden  # It is block-diagonal here: `mixing`.

    def create_mixing(self, blocks: int) -> None:
        """Create the projections of the hidden state, by blocks of channels."""
        width = self.dim // blocks
        bound = width**-0.5
        # Of each block, the rows are hidden states, and the columns those of the gates in turn.
        mixing = torch.empty(blocks, width, self.gates * width).uniform_(-bound, bound)
        self.mixing = nn.Parameter(mixing)

    def project_hidden(self, hidden: Tensor) -> Tensor:
        blocks = hidden.unflatten(-1, (len(self.mixing), 1, -1)) @ upcast(self.mixing)
        return blocks.unflatten(-1, (self.gates, -1)).transpose(-4, -2).flatten(-4)

    def step(self, inputs: Tensor, states: States) -> States:
        hidden, cell, total, scale = states
        entry, forget, candidate, exit_ = (inputs + self.project_hidden(hidden)).chunk(4, dim=-1)
        kept = logsigmoid(forget) + scale
        # An empty cell has no scale.
        highest = torch.where(total == 0.0, entry, torch.maximum(kept, entry))
        kept, entry = torch.where(total == 0.0, 0.0, kept - highest).exp(), (entry - highest).exp()
        cell, total = kept * cell + entry * candidate.tanh(), kept * total + entry
        return exit_.sigmoid() * cell / total, cell, total, highest

    def implied_steps(self, inputs: Tensor, before: Tensor, states: States) -> Steps:
        _, _, total, scale = states
        entry, forget, candidate, exit_ = (inputs + self.project_hidden(before)).chunk(4, dim=-1)
        earlier = torch.cat([scale[:, :1], scale[:, :-1]], dim=1)
        # Above 0 only where there is nothing before.
        decay = (logsigmoid(forget) + earlier - scale).clamp(max=0.0)
        share = safe_divide(exit_.sigmoid(), total)
        return Steps(share, (entry - scale).exp(), candidate.tanh(), decay=decay)

    def naive_hidden(self, hidden: Tensor) -> States:
        width = self.dim // len(self.mixing)
        gates: list[list[Tensor]] = [[] for _ in range(self.gates)]
        for block, weight in enumerate(self.mixing):
            part = hidden[:, block * width : (block + 1) * width]
            for gate, parts in enumerate(gates):
                parts.append(part @ weight[:, gate * width : (gate + 1) * width])
        return tuple(torch.cat(parts, dim=-1) for parts in gates)

    def naive_step(self, x: States, hidden: States, states: States) -> States:
        i, f, z, o = (a + b for a, b in zip(x, hidden, strict=True))
        c = torch.sigmoid(f) * states[1] + torch.exp(i) * torch.tanh(z)
        n = torch.sigmoid(f) * states[2] + torch.exp(i)
        return torch.sigmoid(o) * c / n, c, n, states[3]


@register_recurrent(
    name="slstm",
    also_called=("xlstm",),
    paper="Beck et al. 2024, arXiv 2405.04517",
    equation="c_t = f_t ⊙ c_{t−1} + i_t ⊙ z_t, n_t = f_t ⊙ n_{t−1} + i_t, h_t = o_t ⊙ c_t / n_t",
    reference="closed form",
    deviations="the cell alone, without the block's convolution, norm and projections; the state "
    "is not linear, so tokens are computed one after the other, also in training",
    cache="the hidden state, the cell, its normaliser, and the scale of both",
    weights="nonnegative",
)
class SLSTMAttention(CellAttention):
    """An LSTM with exponential input gates, whose cell is a mean of what it was given.

        c_t = f_t ⊙ c_{t−1} + i_t ⊙ z_t,   n_t = f_t ⊙ n_{t−1} + i_t,   h_t = o_t ⊙ c_t / n_t
        i_t = exp(W x_t + R h_{t−1}),   f_t, o_t = σ(W x_t + R h_{t−1})
        z_t = tanh(W x_t + R h_{t−1})

    R is block-diagonal. c and n are stored divided by e^m, for the largest logarithm m of an input
    gate that has decayed since; so nothing overflows.

    Args:
        blocks: of R; channels of one block read each other's hidden states.
    """

    cell_type = SLSTMCell
    cell: SLSTMCell

    def __init__(self, *, blocks: int = 4, **options: Any) -> None:
        super().__init__(**options)
        check_positive(blocks=blocks)
        if self.dim % blocks:
            raise UserError(
                f"dim must be a multiple of blocks, got dim={self.dim}, blocks={blocks}."
            )
        self.cell.create_mixing(blocks)
