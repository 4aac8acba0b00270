"""The long short-term memory (Hochreiter and Schmidhuber 1997)."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from attention_zoo.attention.recurrent.base import register_recurrent
from attention_zoo.attention.recurrent.cells import CellAttention, RecurrentCell, States
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.precision import safe_divide


class LSTMCell(RecurrentCell):
    """The cell of a long short-term memory; see `LSTMAttention`."""

    gates = 4
    num_states = 2

    def step(self, inputs: Tensor, states: States) -> States:
        hidden, cell = states
        entry, forget, candidate, exit_ = (inputs + self.project_hidden(hidden)).chunk(4, dim=-1)
        cell = forget.sigmoid() * cell + entry.sigmoid() * candidate.tanh()
        return exit_.sigmoid() * cell.tanh(), cell

    def implied_steps(self, inputs: Tensor, before: Tensor, states: States) -> Steps:
        hidden, cell = states
        entry, forget, candidate, _ = (inputs + self.project_hidden(before)).chunk(4, dim=-1)
        share = safe_divide(hidden, cell)
        return Steps(share, entry.sigmoid(), candidate.tanh(), decay=logsigmoid(forget))

    def naive_step(self, x: States, hidden: States, states: States) -> States:
        i, f, g, o = (a + b for a, b in zip(x, hidden, strict=True))
        c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


@register_recurrent(
    name="lstm",
    paper="Hochreiter and Schmidhuber 1997, Neural Computation 9(8); Gers et al. 2000, Neural "
    "Computation 12(10)",
    equation="c_t = f_t ⊙ c_{t−1} + i_t ⊙ tanh(W x_t + U h_{t−1}), h_t = o_t ⊙ tanh(c_t)",
    reference="torch.nn.LSTM",
    deviations="the forget gate is that of Gers et al.; the state is not linear, so tokens are "
    "computed one after the other, also in training",
    cache="the hidden state and the cell",
    weights="nonnegative",
)
class LSTMAttention(CellAttention):
    """A recurrent network with a memory cell, as a baseline.

        i_t, f_t, o_t = σ(W x_t + U h_{t−1}),   g_t = tanh(W x_t + U h_{t−1})
        c_t = f_t ⊙ c_{t−1} + i_t ⊙ g_t,   h_t = o_t ⊙ tanh(c_t)

    The weights are those of the candidates g_s in h_t: i_s Π_{s < m ≤ t} f_m, times h_t / c_t.
    """

    cell_type = LSTMCell
