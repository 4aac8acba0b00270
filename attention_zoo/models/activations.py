"""Activations of the feed-forward."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from attention_zoo.custom_gradients import relu_squared

Activation = Literal[
    "relu", "relu_squared", "gelu", "silu", "swiglu", "geglu_tanh", "clamped_swiglu"
]


def clamped_swiglu(gate: Tensor, x: Tensor) -> Tensor:
    """Multiply x + 1 by a gate g·σ(1.702·g), with g ≤ 7 and |x| ≤ 7."""
    gate, x = gate.clamp(max=7.0), x.clamp(-7.0, 7.0)
    return (x + 1.0) * gate * torch.sigmoid(1.702 * gate)


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu_squared": relu_squared,
    "gelu": gelu,
    "silu": silu,
}
# Of the gate, the first half of the channels, and of the other half.
GATED_ACTIVATIONS: dict[Activation, Callable[[Tensor, Tensor], Tensor]] = {
    "swiglu": lambda gate, x: silu(gate) * x,
    "geglu_tanh": lambda gate, x: gelu(gate, approximate="tanh") * x,
    "clamped_swiglu": clamped_swiglu,
}
