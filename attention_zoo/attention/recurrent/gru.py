"""The gated recurrent unit (Cho et al. 2014)."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from attention_zoo.attention.recurrent.base import register_recurrent
from attention_zoo.attention.recurrent.cells import CellAttention, RecurrentCell, States
from attention_zoo.attention.recurrent.steps import Steps


class GRUCell(RecurrentCell):
    """The cell of a gated recurrent unit; see `GRUAttention`."""

    gates = 3

    def step(self, inputs: Tensor, states: States) -> States:
        update, candidate = self.gate(inputs, states[0])
        update = update.sigmoid()
        return (update * states[0] + (1.0 - update) * candidate,)

    def gate(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the logits of z, and n."""
        reset, update, candidate = inputs.chunk(3, dim=-1)
        parts = self.project_hidden(hidden).chunk(3, dim=-1)
        reset = (reset + parts[0]).sigmoid()
        return update + parts[1], (candidate + reset * parts[2]).tanh()

    def implied_steps(self, inputs: Tensor, before: Tensor, states: States) -> Steps:
        update, candidate = self.gate(inputs, before)
        ones = torch.ones_like(candidate)
        return Steps(ones, (-update).sigmoid(), candidate, decay=logsigmoid(update))

    def naive_step(self, x: States, hidden: States, states: States) -> States:
        r, z = (torch.sigmoid(a + b) for a, b in zip(x[:2], hidden[:2], strict=True))
        n = torch.tanh(x[2] + r * hidden[2])
        return ((1 - z) * n + z * states[0],)


@register_recurrent(
    name="gru",
    paper="Cho et al. 2014, arXiv 1406.1078, eq. 5 to 8",
    equation="h_t = z_t ⊙ h_{t−1} + (1 − z_t) ⊙ tanh(W x_t + r_t ⊙ U h_{t−1})",
    reference="torch.nn.GRU",
    deviations="as in PyTorch, r_t gates U h, not h; the state is not linear, so tokens are "
    "computed one after the other, also in training",
    cache="the hidden state",
    weights="nonnegative",
)
class GRUAttention(CellAttention):
    """A recurrent network with gates, as a baseline: each channel of its state is a gated mean.

        r_t, z_t = σ(W x_t + U h_{t−1}),   n_t = tanh(W x_t + r_t ⊙ U h_{t−1})
        h_t = z_t ⊙ h_{t−1} + (1 − z_t) ⊙ n_t

    The weights are those of the candidates n_s in h_t: (1 − z_s) Π_{s < m ≤ t} z_m.
    """

    cell_type = GRUCell
