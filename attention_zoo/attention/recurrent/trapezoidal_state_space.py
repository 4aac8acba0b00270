"""Trapezoidal state spaces, the mechanism of Mamba-3 (Lahoti et al. 2026)."""

import math
from itertools import product
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad, silu, softplus

from attention_zoo.attention import naive
from attention_zoo.attention.dense.norms import RMSNorm
from attention_zoo.attention.recurrent.base import register_recurrent
from attention_zoo.attention.recurrent.convolution import (
    ConvolutionRunner,
    StatefulLayer,
    TokenShift,
)
from attention_zoo.attention.recurrent.decayed import DecayedAttention, add_skip
from attention_zoo.attention.recurrent.naive import outer, read_states, run_additions
from attention_zoo.attention.recurrent.state_space_dual import StateSpaceDualAttention
from attention_zoo.attention.recurrent.steps import Steps, chunk_length
from attention_zoo.backends.reference import repeat_heads
from attention_zoo.errors import UserError, check_positive
from attention_zoo.masks import Mask, TokenSpan
from attention_zoo.precision import autocast_disabled, upcast

MIN_RATE = 1e-4  # the slowest decay, −A


@register_recurrent(
    name="trapezoidal_state_space",
    also_called=("mamba3",),
    paper="Lahoti et al. 2026, arXiv 2603.15569",
    equation="S_t = α_t S_{t−1} + (1 − λ_t) Δ_t α_t B_{t−1}ᵀx_{t−1} + λ_t Δ_t B_tᵀx_t, "
    "y_t = C_t S_t + D x_t, α = exp(Δ (A − iθ))",
    reference="closed form",
    deviations="θ is π tanh(W x), as in the authors' code; A is −softplus(W x), which that code "
    "has since replaced by a heavier tail; one projection for each of z, x, B, C, Δ, A, λ and θ; "
    "padded tokens leave the state as it is",
    cache="the state, the last token and the sums of angles",
)
class TrapezoidalStateSpaceAttention(StateSpaceDualAttention):
    """A state-space model that mixes each token with the one before, and turns its state.

        z, x, B, C, Δ, A, λ, θ = projections of the token;   B, C = norm(B) + b_B, norm(C) + b_C
        S_t = α_t S_{t−1} + (1 − λ_t) Δ_t α_t B_{t−1}ᵀ x_{t−1} + λ_t Δ_t B_tᵀ x_t
        y_t = C_t S_t + D x_t,   out = (y ⊙ swish(z)) W_O

    with Δ = softplus(Δ + bias), A = −softplus(A), λ = σ(λ) and θ = π tanh(θ): the trapezoidal rule
    if λ is ½, and Euler's, as in `state_space_dual`, if λ is 1. Pairs of channels of the state are
    complex numbers, which α = exp(Δ (A − iθ)) turns. B and C are turned by the sum of Δ θ up to
    their token instead: a rotary encoding whose positions depend on the tokens. There is no
    convolution. θ is that of a pair of channels, in all heads; b_B and b_C are those of a head.

    With a rank above 1, a head has several inputs and outputs (MIMO), each with its own B and C:

        x^r = u^r ⊙ x,   B_tᵀ x_t = Σ_r (B_t^r)ᵀ x_t^r,   y_t^r = C_t^r S_t + D x_t^r
        out = (Σ_r o^r ⊙ y^r ⊙ swish(g^r ⊙ z)) W_O

    where u, g and o are learned vectors of each head. The state has the same size for any rank. The
    attention map has rank² maps for each head: of all inputs for the first output, and so on.

    Args:
        rank: number of inputs and outputs of a head; the authors' MIMO models have 4.
        groups: number of B and C, each shared by heads / groups heads.
        state_dim: width of B and C.
        expand: width of all values, as a multiple of dim.
        rotary_fraction: share of the channels of B and C that are complex.
    """

    decided_options = ("kernel_size", "negative_eigenvalues")
    no_decay = ("query_bias", "key_bias", "input_scale", "gate_scale", "output_scale")
    convolves_qkv = False
    num_states = 2

    def __init__(self, *, rank: int = 1, rotary_fraction: float = 0.5, **options: Any) -> None:
        check_positive(rank=rank)
        super().__init__(kernel_size=1, **options)
        self.rank = rank
        self.num_pairs = int(rotary_fraction * self.head_dim) // 2
        if not 0.0 < rotary_fraction <= 1.0 or self.num_pairs == 0:
            raise UserError(
                "rotary_fraction must be above 0 and at most 1, and leave a pair of channels, got "
                f"rotary_fraction={rotary_fraction}, state_dim={self.head_dim}."
            )
        del self.convolution, self.rate, self.scale
        bias = self.query.bias is not None
        if rank > 1:
            width = rank * self.groups * self.head_dim
            self.query, self.key = (nn.Linear(self.dim, width, bias=bias) for _ in range(2))
        # As the authors start, so that the sum over ranks is a mean.
        self.input_scale, self.gate_scale, self.output_scale = (
            nn.Parameter(torch.full((self.heads, rank, 1, self.value_dim), value))
            if rank > 1
            else 1.0
            for value in (1.0 / rank, 1.0, 1.0 / rank)
        )
        self.decay = nn.Linear(self.dim, self.heads, bias=bias)
        self.share = nn.Linear(self.dim, self.heads, bias=bias)
        self.angle = nn.Linear(self.dim, self.num_pairs, bias=bias)
        self.query_norm, self.key_norm = (RMSNorm(self.head_dim, epsilon=1e-5) for _ in range(2))
        self.query_bias, self.key_bias = (
            nn.Parameter(torch.ones(self.heads * rank, 1, self.head_dim)) for _ in range(2)
        )
        self.angle_sum = AngleSum(self.heads * self.num_pairs)
        # Of the keys, a value and the rate of a token for each head.
        self.shift = TokenShift(self.heads * (rank * self.head_dim + self.value_dim + 1))

    def project_steps(self, x: Tensor, positions: Tensor, convolve: ConvolutionRunner) -> Steps:
        """Project tokens to steps whose rates [b h t 2] are λΔ and (1 − λ)Δ.

        There is one value for each head, and a query and a key for each rank: [b (h r) t c].
        """
        q = self.project_groups(self.query, self.query_norm, x) + self.query_bias
        k = self.project_groups(self.key, self.key_norm, x) + self.key_bias
        sizes = self.split_heads(softplus(upcast(self.step(x)) + self.step_bias))
        angles = sizes * math.pi * upcast(self.angle(x)).tanh()[:, None]
        angles = self.split_heads(
            convolve(self.angle_sum, rearrange(angles, "b h t c -> b t (h c)"))
        )
        angles = repeat_heads(angles, self.heads * self.rank)
        q, k = (rotate_pairs(part, angles) for part in (q, k))
        share = self.split_heads(self.share(x)).sigmoid()
        rates = torch.cat([share * sizes, (1.0 - share) * sizes], dim=-1)
        decay = -softplus(self.split_heads(self.decay(x))).clamp(min=MIN_RATE) * sizes
        return Steps(q, k, self.split_heads(self.value(x)), decay=decay, rate=rates)

    def project_groups(self, layer: nn.Linear, norm: nn.Module, x: Tensor) -> Tensor:
        """Project [b t d] to vectors of groups, and normalise them: [b (h r) t c]."""
        y = rearrange(upcast(layer(x)), "b t (r g c) -> b g r t c", r=self.rank, g=self.groups)
        return repeat_heads(norm(y), self.heads).flatten(1, 2)

    def split_ranks(self, x: Tensor) -> Tensor:
        """Split [b (h r) t c] into [b h r t c]."""
        return x.unflatten(1, (self.heads, self.rank))

    def scale_inputs(self, v: Tensor) -> Tensor:
        """Return the inputs [b h r t e] of values [b h t e]."""
        return v[:, :, None] * self.input_scale

    def recur(
        self, steps: Steps, x: Tensor, span: TokenSpan, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        state, last = states if states else (None, None)
        with autocast_disabled(x):
            delayed, now, last = self.delay(steps, span, last)
            delayed = delayed.apply_mask(span)
            q, k, past_k = (self.split_ranks(part) for part in (steps.q, steps.k, delayed.k))
            v, past_v = self.scale_inputs(steps.v), self.scale_inputs(delayed.v)
            assert delayed.decay is not None
            out, state = self.recurrence(unroll_ranks(q, past_k, past_v, delayed.decay), state)
            out = rearrange(out, "b h (t r) e -> b h r t e", r=self.rank)
            for r in range(self.rank):
                rank = slice(r, r + 1)
                own = now[:, :, None] * (q * k[:, :, rank]).sum(dim=-1, keepdim=True)
                out = out + own * v[:, :, rank]
                if r > 0:
                    # The queries of lower ranks were unrolled before this key.
                    missed = (q[:, :, :r] * past_k[:, :, rank]).sum(dim=-1, keepdim=True)
                    out = out + pad(missed * past_v[:, :, rank], (0, 0, 0, 0, 0, self.rank - r))
        skip = self.skip.repeat_interleave(self.rank)
        return add_skip(out.flatten(1, 2), skip, v.flatten(1, 2), span), (state, last)

    def delay(
        self, steps: Steps, span: TokenSpan, last: Tensor | None
    ) -> tuple[Steps, Tensor, Tensor]:
        """Return steps by which each token adds the one before it, and its rate for itself.

        What token t − 1 adds to the state, it adds at t, times λ_{t−1} Δ_{t−1} + (1 − λ_t) Δ_t and
        α_t. So no output depends on a later token. The rates λ_t Δ_t are [b h t 1], and zero at
        padded tokens. The last result is what the next span has to know of this one.
        """
        _, k, v, _, _, decay, *_ = steps
        rate = steps.apply_mask(span).rate
        assert decay is not None and rate is not None
        now, later = rate.split(1, dim=-1)
        keys = rearrange(k, "b (h r) t c -> b h t (r c)", r=self.rank)
        joined = rearrange(torch.cat([keys, v, now], dim=-1), "b h t c -> b t (h c)")
        before, last = self.shift(joined, span, last)
        past_k, past_v, past_now = self.split_heads(before).split(
            [keys.shape[-1], v.shape[-1], 1], dim=-1
        )
        past_k = decay.exp() * (past_now + later) * past_k
        past_k = rearrange(past_k, "b h t (r c) -> b (h r) t c", r=self.rank)
        return steps._replace(k=past_k, v=past_v), now, last

    @property
    def num_maps(self) -> int:
        return self.heads * self.rank**2

    def compute_map(self, x: Tensor, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        """Compute the weights [b (h r s) q k] of input s for output r."""
        weights = DecayedAttention.compute_map(self, x, source, mask, positions)
        identity, of_rank = (
            torch.eye(size, dtype=weights.dtype, device=x.device)
            for size in (x.shape[1], self.rank)
        )
        skip = (self.skip[:, None, None] * of_rank).flatten()
        return add_skip(weights, skip, identity, TokenSpan(mask))

    def implied_weights(self, steps: Steps, x: Tensor, span: TokenSpan) -> Tensor:
        """Move the weights of delayed steps to the tokens that they are of."""
        delayed, now, _ = self.delay(steps, span, None)
        count = self.rank**2
        q = steps.q.repeat_interleave(self.rank, dim=1)
        k, past_k = (self.repeat_ranks(self.split_ranks(part)) for part in (steps.k, delayed.k))
        decay = delayed.decay
        assert decay is not None
        pairs = Steps(q, past_k, delayed.v, decay=decay.repeat_interleave(count, dim=1))
        weights = DecayedAttention.implied_weights(self, pairs, x, span)
        own = now.repeat_interleave(count, dim=1) * (q * k).sum(dim=-1, keepdim=True)
        length = x.shape[1]
        identity = torch.eye(length, dtype=weights.dtype, device=x.device)
        before, _ = self.shift(identity.expand(len(x), -1, -1), span)
        return weights @ before[:, None] + own * identity

    def compute_values(self, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        return self.repeat_ranks(
            self.scale_inputs(DecayedAttention.compute_values(self, source, mask, positions))
        )

    def repeat_ranks(self, x: Tensor) -> Tensor:
        """Repeat what inputs have [b h s t c] for all outputs: [b (h r s) t c]."""
        return x[:, :, None].expand(-1, -1, self.rank, -1, -1, -1).flatten(1, 3)

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        # Summed over the inputs of an output, where each has its own part, as by a map.
        y = attended.unflatten(1, (self.heads, self.rank, -1)).sum(dim=3)
        gate = rearrange(self.gate(x), "b t (h e) -> b h 1 t e", h=self.heads) * self.gate_scale
        y = (y * silu(gate) * self.output_scale).sum(dim=2)
        return self.output(rearrange(y, "b h t e -> b t (h e)").to(x.dtype))

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        b, c = (self.naive_vectors(x, part) for part in ("key", "query"))
        v = naive.linear_heads(self.value, x, self.heads)
        ones = torch.ones(self.heads, self.rank, 1, self.value_dim)
        scales = (self.input_scale, self.gate_scale, self.output_scale)
        u, g, o = ((scale * ones).unbind(dim=1) for scale in scales)
        inputs = [v * scale for scale in u]
        steps = naive.linear_heads(self.step, x, self.heads)
        sizes = softplus(steps + self.step_bias[:, None, None])
        share = torch.sigmoid(naive.linear_heads(self.share, x, self.heads))
        rates = softplus(naive.linear_heads(self.decay, x, self.heads)).clamp(min=1e-4)
        angles = math.pi * torch.tanh(naive.linear(self.angle, x))[:, None] * sizes
        transitions = torch.exp(-rates * sizes)[..., None] * naive_rotations(angles, self.head_dim)
        outer_products = [outer(key, value) for key, value in zip(b, inputs, strict=True)]
        additions = torch.stack(outer_products).sum(dim=0)
        before = torch.zeros_like(additions)
        for row, t in product(*map(range, x.shape[:2])):
            earlier = visible[row, t, :t].nonzero()[:, 0]
            if len(earlier):
                before[row, :, t] = additions[row, :, earlier[-1]]
        weights = (share * sizes)[..., None], ((1 - share) * sizes)[..., None]
        states = run_additions(
            transitions, weights[0] * additions + weights[1] * (transitions @ before), visible
        )
        gate = naive.linear_heads(self.gate, x, self.heads)
        real = visible.diagonal(dim1=1, dim2=2)[:, None, :, None]
        y = torch.zeros_like(v)
        for r, query in enumerate(c):
            output = read_states(query, states) + self.skip[:, None, None] * inputs[r] * real
            y = y + output * silu(gate * g[r]) * o[r]
        return naive.linear(self.output, torch.cat([*y.unbind(dim=1)], dim=-1))

    def naive_vectors(self, x: Tensor, name: str) -> list[Tensor]:
        """Return B or C of each rank, [b h t c], before they are turned."""
        layer, norm, bias = (getattr(self, f"{name}{part}") for part in ("", "_norm", "_bias"))
        vectors = []
        for r, part in enumerate(naive.linear(layer, x).chunk(self.rank, dim=-1)):
            normal = naive.rms_norm(naive.split_heads(part, self.groups), norm.weight, epsilon=1e-5)
            vectors.append(naive.repeat_groups(normal, self.heads) + bias[r :: self.rank])
        return vectors


class AngleSum(StatefulLayer):
    """The sums of angles [b t d] up to each token, from chunk to chunk modulo 2π.

    So they stay small, and their differences keep their digits in float32, however long the
    sequence. Padded tokens do not turn. Sums go on where a segment starts, as only differences
    have an effect.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    @property
    def state_size(self) -> int:
        return self.channels

    def forward(
        self, x: Tensor, span: TokenSpan, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if span.key_mask is not None:
            x = x.masked_fill(~span.key_mask[..., None], 0.0)
        length, size = x.shape[1], chunk_length(x.shape[1])
        chunks = pad(x, (0, 0, 0, -length % size)).unflatten(1, (-1, size)).cumsum(dim=2)
        starts = [torch.zeros_like(x[:, 0]) if state is None else state]
        for total in chunks[:, :, -1].unbind(1):
            starts.append((starts[-1] + total).remainder(2.0 * math.pi))
        sums = chunks + torch.stack(starts[:-1], dim=1)[:, :, None]
        return sums.flatten(1, 2)[:, :length], starts[-1]


def unroll_ranks(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Steps:
    """Return a step for each rank of each token, [b h (t r) …]. The decay comes with the first.

    Queries, keys and values are [b h r t …], and the decay [b h t 1].
    """
    decay = pad(decay[:, :, :, None], (0, 0, 0, q.shape[2] - 1)).flatten(2, 3)
    q, k, v = (rearrange(part, "b h r t c -> b h (t r) c") for part in (q, k, v))
    return Steps(q, k, v, decay=decay)


def rotate_pairs(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the first pairs of channels, 2i and 2i + 1, of x [b h t c] by angles [b h t i]."""
    turned, rest = x.split([2 * angles.shape[-1], x.shape[-1] - 2 * angles.shape[-1]], dim=-1)
    first, second = turned.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    pairs = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return torch.cat([pairs.flatten(-2), rest], dim=-1)


def naive_rotations(angles: Tensor, width: int) -> Tensor:
    """Return matrices [b h t c c] that turn the first pairs of channels back by [b h t i]."""
    rotations = torch.eye(width, dtype=angles.dtype).repeat(*angles.shape[:3], 1, 1)
    for i, angle in enumerate(angles.unbind(dim=-1)):
        first, second = 2 * i, 2 * i + 1
        rotations[..., first, first] = rotations[..., second, second] = torch.cos(angle)
        rotations[..., first, second] = torch.sin(angle)
        rotations[..., second, first] = -torch.sin(angle)
    return rotations
