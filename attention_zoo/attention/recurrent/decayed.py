"""Attention by a state that decays, S_t = diag(a_t) S_{t−1} + k_tᵀ v_t, computed in chunks."""

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
from attention_zoo.attention.recurrent.decayed_product import decayed_product
from attention_zoo.attention.recurrent.naive import read_states, run_states
from attention_zoo.attention.recurrent.signed_decay import fold_signs, run_signed
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.masks import TokenSpan
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
        return run_signed(product, steps, state)

    def implied_weights(self, steps: Steps, x: Tensor, span: TokenSpan) -> Tensor:
        """Compute Σ_c q_ic k_jc Π_m a_mc over the m after j, up to i, that i sees.

        Work grows with length²; one query is computed at a time.
        """
        q, k, _, _, _, decay, *_ = steps
        assert decay is not None
        if steps.sign is not None:
            q, k, *_ = fold_signs(steps.apply_mask(span))[0]
        columns = torch.arange(x.shape[1], device=x.device)[None, None]
        visible = span.mask.gather(columns, columns, x.shape[1])
        is_after = torch.ones(2 * k.shape[2:3], dtype=decay.dtype, device=x.device).triu(1)
        rows = []
        with autocast_disabled(x):
            for i in range(x.shape[1]):
                seen = visible[:, :, i, :, None]
                decays = (is_after @ decay.masked_fill(~seen, 0.0)).exp()
                rows.append((q[:, :, i : i + 1] * k * decays * seen).sum(dim=-1))
        return torch.stack(rows, dim=2)

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        normal = layer_norm(attended, (self.value_dim,))
        return super().project_output(normal * self.output_gate(x), x)

    def output_gate(self, x: Tensor) -> Tensor:
        """Compute the gate of the outputs, [b h t e]."""
        return silu(rearrange(self.gate(x), "b t (h e) -> b h t e", h=self.heads))

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        q, k, v = naive.linear_qkv(self, x)
        q, k = naive.rotate_qk(self, q, k, positions)
        states = run_states(torch.diag_embed(self.naive_decay(x)), k, v, visible)
        attended = read_states(q, states) / math.sqrt(self.head_dim)
        normal = naive.layer_norm(attended, epsilon=1e-5)
        gate = silu(naive.linear_heads(self.gate, x, self.heads))
        return naive.linear_output(self.output, normal * gate)

    def naive_decay(self, x: Tensor) -> Tensor:
        """Return a, [b|1 h t c]."""
        raise NotImplementedError


def add_skip(out: Tensor, skip: Tensor, v: Tensor, span: TokenSpan) -> Tensor:
    """Add D v to the outputs [b h t e] of real tokens with the values v [… t e], and D [h]."""
    skips = skip[:, None, None] * v
    if span.key_mask is not None:
        skips = skips.masked_fill(~span.key_mask[:, None, :, None], 0.0)
    return out + skips
