"""State-space duality, the mechanism of Mamba-2 (Dao and Gu 2024)."""

from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu, softplus

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.base import (
    STEP_SEARCH_SPACE,
    draw_step_bias,
    register_recurrent,
)
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner, ShortConvolution
from attention_zoo.attention.recurrent.decayed import DecayedAttention, add_skip
from attention_zoo.attention.recurrent.naive import read_states, run_states
from attention_zoo.attention.recurrent.signed_decay import extend_decay
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.backends.reference import repeat_heads
from attention_zoo.errors import UserError, check_positive
from attention_zoo.masks import Mask, TokenSpan
from attention_zoo.precision import upcast


@register_recurrent(
    name="state_space_dual",
    also_called=("mamba2", "ssd"),
    paper="Dao and Gu 2024, arXiv 2405.21060, §6 and §7",
    equation="S_t = exp(−e^A Δ_t) S_{t−1} + Δ_t B_tᵀx_t, y_t = C_t S_t + D x_t",
    reference="transformers Mamba2Mixer",
    deviations="one projection for each of z, x, B, C, Δ, which the paper's block joins into "
    "one; padded tokens leave the state as it is, and are left out of the convolution",
    positions=("positions", "embeddings", "heads"),
    cache="the state, and the last tokens of the convolution",
    search_space=STEP_SEARCH_SPACE,
)
class StateSpaceDualAttention(DecayedAttention):
    """A state-space model whose matrix of weights is that of masked attention.

        z, x, B, C, Δ = projections of the token;   x, B, C = swish(convolution(x, B, C))
        S_t = exp(−e^A Δ_t) S_{t−1} + Δ_t B_tᵀ x_t,   y_t = C_t S_t + D x_t
        out = norm(y ⊙ swish(z)) W_O,   Δ = softplus(Δ + bias)

    C is the query, B the key, x the value; A, D and Δ are numbers of a head.

    Args:
        groups: number of B and C, each shared by heads / groups heads; the norm of outputs is over
            a group.
        state_dim: width of B and C.
        expand: width of all values, as a multiple of dim.
        kernel_size: number of tokens that the convolution mixes, including the token itself.
        negative_eigenvalues: whether a token multiplies the state by 2 exp(−e^A Δ) − 1, between −1
            and 1, so that it can turn its sign (Grazzi et al. 2024, arXiv 2411.12537).
        time_step_max: largest Δ of no input at the start; above 0.1, heads forget more quickly.
    """

    decided_options: ClassVar[tuple[str, ...]] = ("head_dim",)
    convolves_qkv = True

    def __init__(
        self,
        *,
        groups: int = 1,
        state_dim: int = 64,
        expand: int = 2,
        kernel_size: int = 4,
        negative_eigenvalues: bool = False,
        time_step_max: float = 0.1,
        **options: Any,
    ) -> None:
        check_positive(groups=groups, state_dim=state_dim, expand=expand)
        super().__init__(head_dim=state_dim, **options)
        if self.heads % groups or expand * self.dim % self.heads:
            raise UserError(
                "heads must be a multiple of groups, and expand·dim of heads, got "
                f"heads={self.heads}, groups={groups}, expand={expand}, dim={self.dim}."
            )
        self.set_value_dim(expand * self.dim // self.heads)
        bias = self.query.bias is not None
        self.groups = groups
        self.negative_eigenvalues = negative_eigenvalues
        self.query = nn.Linear(self.dim, groups * state_dim, bias=bias)
        self.key = nn.Linear(self.dim, groups * state_dim, bias=bias)
        # Widths of the values, keys and queries in the convolution.
        self.widths = (self.heads * self.value_dim, groups * state_dim, groups * state_dim)
        self.convolution = ShortConvolution(sum(self.widths), kernel_size, bias=True)
        self.step = nn.Linear(self.dim, self.heads, bias=bias)
        self.step_bias = nn.Parameter(draw_step_bias(self.heads, time_step_max))
        self.rate = nn.Parameter(torch.empty(self.heads).uniform_(1.0, 16.0).log())
        self.skip = nn.Parameter(torch.ones(self.heads))
        self.scale = nn.Parameter(torch.ones(self.heads * self.value_dim))

    def project_steps(self, x: Tensor, positions: Tensor, convolve: ConvolutionRunner) -> Steps:
        joined = torch.cat([self.value(x), self.key(x), self.query(x)], dim=-1)
        v, k, q = silu(upcast(convolve(self.convolution, joined))).split(self.widths, dim=-1)
        q, k = (
            repeat_heads(rearrange(part, "b t (g c) -> b g t c", g=self.groups), self.heads)
            for part in (q, k)
        )
        q, k = self.position.rotate(q, k, positions)
        v = self.split_heads(v)
        sizes = self.split_heads(softplus(upcast(self.step(x)) + self.step_bias))
        decay = -self.rate.exp()[:, None, None] * sizes
        decay, sign = extend_decay(decay) if self.negative_eigenvalues else (decay, None)
        return Steps(q, k * sizes, v, decay=decay, sign=sign)

    def recur(
        self, steps: Steps, x: Tensor, span: TokenSpan, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        out, states = super().recur(steps, x, span, states)
        return self.add_skip(out, steps.v, span), states

    def add_skip(self, out: Tensor, v: Tensor, span: TokenSpan) -> Tensor:
        """Add D v to the outputs [b h t e] of real tokens with the values v [… t e]."""
        return add_skip(out, self.skip, v, span)

    def compute_map(self, x: Tensor, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        weights = super().compute_map(x, source, mask, positions)
        unit_values = torch.eye(x.shape[1], dtype=weights.dtype, device=weights.device)
        return self.add_skip(weights, unit_values, TokenSpan(mask))

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        y = rearrange(attended, "b h t e -> b t (h e)") * silu(self.gate(x))
        y = y.unflatten(-1, (self.groups, -1))
        y = rms_norm(y, y.shape[-1:], eps=1e-5).flatten(-2) * self.scale
        return self.output(y.to(x.dtype))

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        layers = (self.value, self.key, self.query)
        joined = torch.cat([naive.linear(layer, x) for layer in layers], dim=-1)
        v, k, q = silu(self.convolution.naive(joined, visible)).split(self.widths, dim=-1)
        q, k = (
            naive.repeat_groups(naive.split_heads(part, self.groups), self.heads) for part in (q, k)
        )
        q, k = naive.rotate_qk(self, q, k, positions)
        v = naive.split_heads(v, self.heads)
        steps = naive.linear_heads(self.step, x, self.heads)
        sizes = softplus(steps + self.step_bias[:, None, None])
        decay = torch.exp(-torch.exp(self.rate)[:, None, None] * sizes)
        if self.negative_eigenvalues:
            decay = 2 * decay - 1
        y = self.naive_sums(q, sizes * k, v, decay, x, visible)
        y = y + self.skip[:, None, None] * v * visible.diagonal(dim1=1, dim2=2)[:, None, :, None]
        y = torch.cat([*y.unbind(dim=1)], dim=-1) * silu(naive.linear(self.gate, x))
        scales = self.scale.chunk(self.groups)
        normal = [
            naive.rms_norm(part, scale, epsilon=1e-5)
            for part, scale in zip(y.chunk(self.groups, dim=-1), scales, strict=True)
        ]
        return naive.linear(self.output, torch.cat(normal, dim=-1))

    def naive_sums(
        self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, x: Tensor, visible: Tensor
    ) -> Tensor:
        """Compute q_t S_t for S_t = a_t S_{t−1} + k_tᵀ v_t, with a number a [b h t 1] of a head."""
        transitions = torch.diag_embed(decay.expand_as(k))
        return read_states(q, run_states(transitions, k, v, visible))
