"""Recurrent networks, against those of PyTorch."""

import torch
from torch import nn

from attention_zoo import create_attention
from tests.parity.compared import Outcome, outcome, parity

DIM, LENGTH = 32, 70


def compare(name: str, theirs: nn.RNNBase) -> tuple[Outcome, Outcome]:
    ours = create_attention(name, dim=DIM, role="causal")
    names = {
        "weight_ih_l0": ours.cell.input.weight,
        "weight_hh_l0": ours.cell.hidden.weight,
        "bias_ih_l0": ours.cell.input.bias,
        "bias_hh_l0": ours.cell.hidden.bias,
    }
    theirs.load_state_dict(names)
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    others = [theirs.get_parameter(part) for part in names]
    return outcome(ours(x), [x, *names.values()]), outcome(theirs(x)[0], [x, *others])


@parity("gru", "torch.nn.GRU")
def gru() -> tuple[Outcome, Outcome]:
    return compare("gru", nn.GRU(DIM, DIM, batch_first=True))


@parity("lstm", "torch.nn.LSTM")
def lstm() -> tuple[Outcome, Outcome]:
    return compare("lstm", nn.LSTM(DIM, DIM, batch_first=True))
