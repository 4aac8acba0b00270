"""The selective state-space model of Mamba (Gu and Dao 2023)."""

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from attention_zoo.attention import naive
from attention_zoo.attention.dense.norms import RMSNorm
from attention_zoo.attention.recurrent.base import (
    STEP_SEARCH_SPACE,
    RecurrentAttention,
    create_low_rank_linear,
    draw_step_bias,
    register_recurrent,
)
from attention_zoo.attention.recurrent.channel_scan import channel_scan
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner, ShortConvolution
from attention_zoo.attention.recurrent.decayed import add_skip
from attention_zoo.attention.recurrent.decayed_product import decayed_product
from attention_zoo.attention.recurrent.naive import low_rank_linear, read_states, run_states
from attention_zoo.attention.recurrent.signed_decay import extend_decay, run_signed
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.checkpointing import checkpoint
from attention_zoo.errors import check_positive
from attention_zoo.masks import Mask, TokenSpan
from attention_zoo.precision import upcast

SPAN = 1024  # tokens whose states are computed at once


@register_recurrent(
    name="selective_scan",
    also_called=("mamba", "s6"),
    paper="Gu and Dao 2023, arXiv 2312.00752, §3",
    equation="S_t = exp(−e^A Δ_t) ⊙ S_{t−1} + Δ_t B_tᵀx_t, y_t = C_t S_t + D x_t",
    reference="transformers MambaMixer",
    deviations="states are computed token by token or in chunks, and again in the backward pass, "
    "not by a scan in one kernel; padded tokens leave the state as it is",
    cache="the state, and the last tokens of the convolution",
    weights="signed",
    search_space=STEP_SEARCH_SPACE,
)
class SelectiveScanAttention(RecurrentAttention):
    """A state-space model of each channel, whose step sizes and projections depend on the token.

        x, z = projections of the token;   x = swish(convolution(x));   B, C, Δ = projections of x
        S_t = exp(−e^A Δ_t) ⊙ S_{t−1} + Δ_t B_tᵀ x_t,   y_t = C_t S_t + D x_t
        out = (y ⊙ swish(z)) W_O,   Δ = softplus(W₂ W₁ x + b)

    Each channel of x is a head of its own: A, of state_dim numbers, and Δ and D, of one, are those
    of the channel. C is the query and B the key of all channels.

    Args:
        state_dim: width of B and C.
        expand: number of channels of x, as a multiple of dim.
        kernel_size: number of tokens that the convolution mixes, including the token itself.
        rank: of W₂ W₁; default: dim / 16, rounded up.
        inner_norm: whether B, C and W₁ x are normalised (Lieber et al. 2024, Jamba, arXiv
            2403.19887).
        negative_eigenvalues: whether a token multiplies the state by 2 exp(−e^A Δ) − 1, between −1
            and 1, so that it can turn its signs (Grazzi et al. 2024, arXiv 2411.12537).
        time_step_max: largest softplus(b) at the start; above 0.1, states forget more quickly.
    """

    decided_options = ("backend", "heads", "head_dim", "bias")
    no_decay = ("rate",)
    convolves_qkv = True

    def __init__(
        self,
        *,
        dim: int,
        state_dim: int = 16,
        expand: int = 2,
        kernel_size: int = 4,
        rank: int | None = None,
        inner_norm: bool = False,
        negative_eigenvalues: bool = False,
        time_step_max: float = 0.1,
        **options: Any,
    ) -> None:
        rank = math.ceil(dim / 16) if rank is None else rank
        check_positive(state_dim=state_dim, expand=expand, rank=rank)
        channels = expand * dim
        super().__init__(backend="torch", dim=dim, heads=channels, head_dim=state_dim, **options)
        self.value_dim = 1
        self.negative_eigenvalues = negative_eigenvalues
        self.convolution = ShortConvolution(channels, kernel_size, bias=True)
        self.step = create_low_rank_linear(channels, rank, channels, bias=True)
        self.step[1].bias = nn.Parameter(draw_step_bias(channels, time_step_max))
        self.key_norm, self.query_norm, self.step_norm = (
            RMSNorm(width) if inner_norm else nn.Identity()
            for width in (state_dim, state_dim, rank)
        )
        rates = torch.arange(1.0, state_dim + 1.0).log()
        self.rate = nn.Parameter(rates.repeat(channels, 1))
        self.skip = nn.Parameter(torch.ones(channels))

    def create_projections(self, bias: bool) -> None:
        self.value, self.gate = (nn.Linear(self.dim, self.heads, bias=False) for _ in range(2))
        self.key, self.query = (nn.Linear(self.heads, self.head_dim, bias=False) for _ in range(2))
        self.output = nn.Linear(self.heads, self.dim, bias=False)

    def project_steps(self, x: Tensor, positions: Tensor, convolve: ConvolutionRunner) -> Steps:
        mixed = silu(convolve(self.convolution, self.value(x)))
        # Shared by all channels.
        q, k = (
            upcast(part)[:, None].expand(-1, self.heads, -1, -1)
            for part in (self.query_norm(self.query(mixed)), self.key_norm(self.key(mixed)))
        )
        down, up = self.step
        sizes = softplus(self.split_heads(up(self.step_norm(down(mixed)))))
        decay = -upcast(self.rate).exp()[:, None] * sizes
        decay, sign = extend_decay(decay) if self.negative_eigenvalues else (decay, None)
        return Steps(q, k * sizes, self.split_heads(mixed), decay=decay, sign=sign)

    def recur(
        self, steps: Steps, x: Tensor, span: TokenSpan, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        out, states = super().recur(steps, x, span, states)
        return add_skip(out, self.skip, steps.v, span), states

    def recurrence(self, steps: Steps, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute the states of a span, and compute them again in the backward pass: they are many.

        A span at a time, so that they stay in the processor's cache.
        """
        parts = (steps.q, steps.k, steps.v, steps.decay, steps.sign)
        tokens = (x.split(SPAN, dim=2) for x in parts if x is not None)
        outs = []
        for span in zip(*tokens, strict=True):
            out, state = checkpoint(scan_channels, state, *span)
            outs.append(out)
        assert state is not None
        return torch.cat(outs, dim=2), state

    def implied_weights(self, steps: Steps, x: Tensor, span: TokenSpan) -> Tensor:
        return run_signed(decayed_product, steps.use_unit_values().apply_mask(span), None)[0]

    def compute_map(self, x: Tensor, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        weights = super().compute_map(x, source, mask, positions)
        unit_values = torch.eye(x.shape[1], dtype=weights.dtype, device=weights.device)
        return add_skip(weights, self.skip, unit_values, TokenSpan(mask))

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        y = rearrange(attended, "b h t c -> b t (h c)") * silu(self.gate(x))
        return self.output(y.to(x.dtype))

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        mixed = silu(self.convolution.naive(naive.linear(self.value, x), visible))
        b = naive_norm(self.key_norm, naive.linear(self.key, mixed))[:, None]
        c = naive_norm(self.query_norm, naive.linear(self.query, mixed))[:, None]
        steps = low_rank_linear(self.step, mixed, lambda y: naive_norm(self.step_norm, y))
        steps = torch.log(1 + torch.exp(steps))
        v, steps = (naive.split_heads(part, self.heads) for part in (mixed, steps))
        decay = torch.exp(-torch.exp(self.rate)[:, None] * steps)
        if self.negative_eigenvalues:
            decay = 2 * decay - 1
        transitions = torch.diag_embed(decay)
        y = read_states(c, run_states(transitions, steps * b, v, visible))
        y = y + self.skip[:, None, None] * v * visible.diagonal(dim1=1, dim2=2)[:, None, :, None]
        y = torch.cat([*y.unbind(dim=1)], dim=-1) * silu(naive.linear(self.gate, x))
        return naive.linear(self.output, y)


def naive_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Normalise vectors [… c] by definition, if there is a norm."""
    return naive.rms_norm(x, norm.weight, epsilon=1e-6) if isinstance(norm, RMSNorm) else x


def scan_channels(
    state: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    sign: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `channel_scan` of the parts of steps, from a state on."""
    return run_signed(channel_scan, Steps(q, k, v, decay=decay, sign=sign), state)
