"""Attention by a state that decays: what its variants share."""

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent import kernels
from attention_zoo.attention.recurrent.base import RecurrentAttention
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.attention.recurrent.naive import outer, read_states, run_states
from attention_zoo.attention.recurrent.recurrence import decayed_product, unrolled_weights
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.masks import Mask, TokenSpan
from attention_zoo.precision import autocast_disabled, upcast


class DecayedAttention(RecurrentAttention):
    """A state of constant size takes in the tokens, and decays.

        S_t = diag(a_t) S_{t−1} + k_tᵀ v_t,   out_t = q_t S_t
        y_t = (norm(out_t) ⊙ swish(x_t W_G)) W_O

    with a norm for each head. A variant overrides `log_decay` and `naive_decay`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.set_value_dim(self.head_dim)

    def set_value_dim(self, width: int) -> None:
        """Create the projections to and from values of this width."""
        self.value_dim = width
        bias = self.query.bias is not None
        self.value = nn.Linear(self.dim, self.heads * width, bias=bias)
        self.gate = nn.Linear(self.dim, self.heads * width, bias=bias)
        self.output = nn.Linear(self.heads * width, self.dim, bias=bias)

    def project_steps(self, x: Tensor, positions: Tensor, convolve: ConvolutionRunner) -> Steps:
        q = self.project_query(x)
        k, v = self.project_key_value(x)
        q, k = self.position.rotate(q, k, positions)
        q, k, v = upcast(q) * self.head_dim**-0.5, upcast(k), upcast(v)
        return Steps(q, k, v, decay=self.log_decay(x))

    def log_decay(self, x: Tensor) -> Tensor:
        """Return log a, [b|1 h t c|1], not above 0, in float32 at least."""
        raise NotImplementedError

    def recurrence(self, steps: Steps, state: Tensor | None) -> tuple[Tensor, Tensor]:
        product = kernels.decayed_product if self.backend == "fla" else decayed_product
        return product(steps, state)

    def compute_map(self, x: Tensor, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        steps = self.project_steps(x, positions, ConvolutionRunner(TokenSpan(mask)))
        return self.implied_weights(steps, x, visible_keys(mask, x))

    def implied_weights(self, steps: Steps, x: Tensor, visible: Tensor) -> Tensor:
        """Compute the weights [b h t t] of visible [b|1 t t] keys, with length² work."""
        assert steps.decay is not None
        with autocast_disabled(x):
            return unrolled_weights(steps.q, steps.k, steps.decay, visible)

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        normal = layer_norm(attended, (self.value_dim,))
        gate = rearrange(self.gate(x), "b t (h e) -> b h t e", h=self.heads)
        return super().project_output(normal * silu(gate), x)

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        q, k, v = naive.linear_qkv(self, x)
        q, k = naive.rotate_qk(self, q, k, positions)
        states = run_states(torch.diag_embed(self.naive_decay(x)), outer(k, v), visible)
        attended = read_states(q, states) / math.sqrt(self.head_dim)
        normal = naive.layer_norm(attended, epsilon=1e-5)
        gate = silu(naive.linear_heads(self.gate, x, self.heads))
        return naive.linear_output(self.output, normal * gate)

    def naive_decay(self, x: Tensor) -> Tensor:
        """Return a, [b|1 h t c]."""
        raise NotImplementedError


def visible_keys(mask: Mask, x: Tensor) -> Tensor:
    """Return which tokens x [b t d] see which, [b|1 t t] bool."""
    columns = range(x.shape[1])
    visible = mask.dense(columns, columns, device=x.device)
    if visible is None:
        return torch.ones(1, 1, 1, dtype=torch.bool, device=x.device)
    return visible[:, 0]
