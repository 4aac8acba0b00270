"""What the naive forms of recurrences share; no `forward` calls it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.attention.naive import linear


def run_states(transitions: Tensor, additions: Tensor, visible: Tensor) -> Tensor:
    """Compute S_t = T_t S_{t−1} + A_t, token after token.

    Args:
        transitions: T, [b|1 h t c c].
        additions: A, [b h t c e].
        visible: [b t t] bool. A token that does not see itself is padding, and leaves the state as
            it is; one that sees nothing before it starts from an empty state.

    Returns:
        S, [b h t c e].
    """
    state, states = torch.zeros_like(additions[:, :, 0]), []
    for t in range(additions.shape[2]):
        is_real, is_first = visible[:, t, t], ~visible[:, t, :t].any(dim=-1)
        state = state.masked_fill(is_first[:, None, None, None], 0.0)
        after = transitions[:, :, t] @ state + additions[:, :, t]
        state = torch.where(is_real[:, None, None, None], after, state)
        states.append(state)
    return torch.stack(states, dim=2)


def read_states(q: Tensor, states: Tensor) -> Tensor:
    """Compute q_t S_t for q [b h t c] and S [b h t c e]: [b h t e]."""
    return (q[..., None] * states).sum(dim=-2)


def outer(x: Tensor, y: Tensor) -> Tensor:
    """Compute x yᵀ for [… c] and [… e]: [… c e]."""
    return x[..., :, None] * y[..., None, :]


def divide_by_length(x: Tensor) -> Tensor:
    """Compute x / √(|x|² + 10⁻⁶) for [… c]."""
    return x / torch.sqrt((x**2).sum(dim=-1, keepdim=True) + 1e-6)


def head_scalars(layer: nn.Linear, x: Tensor) -> Tensor:
    """Project [b t d] to a number for each head, [b h t 1]."""
    return linear(layer, x).transpose(1, 2)[..., None]


def low_rank_linear(
    layers: Any, x: Tensor, activation: Callable[[Tensor], Tensor] = lambda hidden: hidden
) -> Tensor:
    """Compute W₂ f(W₁ x) + b for a sequence of layers that has an activation f, or none."""
    first, *_, last = layers.children()
    return linear(last, activation(linear(first, x)))
