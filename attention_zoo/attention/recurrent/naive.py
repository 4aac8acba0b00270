"""What the naive forms of recurrences share; no `forward` calls it."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from attention_zoo.attention.base import Attention
from attention_zoo.attention.naive import linear, split_heads


def run_states(transitions: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Compute S_t = T_t S_{t−1} + k_t v_tᵀ, [b h t c e], for transitions T [b|1 h t c c]."""
    return run_additions(transitions, outer(k, v), visible)


def run_additions(transitions: Tensor, additions: Tensor, visible: Tensor) -> Tensor:
    """Compute S_t = T_t S_{t−1} + A_t for transitions T [b|1 h t c c] and additions A [b h t c e].

    A token that does not see itself, by visible [b t t], is padding, and leaves the state as it is;
    one that sees nothing before it starts from an empty state.
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


def run_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, rate: Tensor, visible: Tensor, decay: Tensor | None = None
) -> Tensor:
    """Compute S_tᵀ q_t/√c for S_t = (I − β_t k_t k_tᵀ) Diag(a_t) S_{t−1} + β_t k_t v_tᵀ: [b h t e].

    Queries and keys are made unit vectors; β is [b h t 1], and the decay a [b h t 1|c].
    """
    q, k = divide_by_length(q), divide_by_length(k)
    transitions = torch.eye(k.shape[-1]) - outer(rate * k, k)
    if decay is not None:
        transitions = transitions * decay[..., None, :]
    return read_states(q, run_states(transitions, rate * k, v, visible)) / math.sqrt(k.shape[-1])


def outer(x: Tensor, y: Tensor) -> Tensor:
    """Compute x yᵀ for [… c] and [… e]: [… c e]."""
    return x[..., :, None] * y[..., None, :]


def divide_by_length(x: Tensor) -> Tensor:
    """Compute x / √(|x|² + 10⁻⁶) for [… c]."""
    return x / torch.sqrt((x**2).sum(dim=-1, keepdim=True) + 1e-6)


def convolve_heads(attention: Attention, name: str, x: Tensor, visible: Tensor) -> Tensor:
    """Project [b t d] by the layer of a name, and convolve visible tokens; SiLU: [b h t c]."""
    projected = linear(getattr(attention, name), x)
    convolution = getattr(attention, f"{name}_convolution")
    return silu(split_heads(convolution.naive(projected, visible), attention.heads))


def low_rank_linear(
    layers: Any, x: Tensor, activation: Callable[[Tensor], Tensor] = lambda hidden: hidden
) -> Tensor:
    """Compute W₂ f(W₁ x) + b for a sequence of layers that has an activation f, or none."""
    first, *_, last = layers.children()
    return linear(last, activation(linear(first, x)))
