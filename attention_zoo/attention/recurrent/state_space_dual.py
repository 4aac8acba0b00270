"""State-space duality, the mechanism of Mamba-2 (Dao and Gu 2024)."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu, softplus

from attention_zoo.attention.precision import upcast
from attention_zoo.attention.recurrent.convolution import ShortConvolution
from attention_zoo.attention.recurrent.decayed import DecayedAttention, Heads, Span, State
from attention_zoo.attention.recurrent.recurrence import step_sizes
from attention_zoo.backends.reference import repeat_heads
from attention_zoo.errors import UserError
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="state_space_dual",
        paper="Dao and Gu 2024, arXiv 2405.21060, §6 and §7",
        equation="S_t = exp(−e^A Δ_t) S_{t−1} + Δ_t B_tᵀx_t, y_t = C_t S_t + D x_t",
        reference="transformers Mamba2Mixer",
        deviations="one projection for each of z, x, B, C, Δ, which the paper's block joins into "
        "one; padded tokens leave the state as it is, and count as zeros in the convolution",
        roles=("causal",),
        masks=("causal", "key_mask", "segment_ids"),
        positions=("positions", "embeddings", "heads"),
        cache="the state, and the last tokens of the convolution",
        decode_state="h·c·e + (w - 1)·(h·e + 2·g·c)",
        cost="t",
        weights="signed",
    )
)
class StateSpaceDualAttention(DecayedAttention):
    """A state-space model whose matrix of weights is that of masked attention:

        z, x, B, C, Δ = projections of the token;   x, B, C = swish(convolution(x, B, C))
        S_t = exp(−e^A Δ_t) S_{t−1} + Δ_t B_tᵀ x_t,   y_t = C_t S_t + D x_t
        out = norm(y ⊙ swish(z)) W_O,   Δ = softplus(Δ + bias)

    C is the query, B the key, x the value; A, D and Δ are numbers of a head.

    Args:
        groups: number of B and C, each shared by heads / groups heads; outputs are normed together
            for each group.
        state_dim: width of B and C.
        expand: width of all values, as a multiple of dim.
        kernel_size: tokens that the convolution mixes, oneself included.
    """

    decided_options = ("head_dim",)

    def __init__(
        self,
        *,
        groups: int = 1,
        state_dim: int = 64,
        expand: int = 2,
        kernel_size: int = 4,
        **options: Any,
    ) -> None:
        if min(groups, state_dim, expand) < 1:
            raise UserError(
                "groups, state_dim and expand must be at least 1, got "
                f"groups={groups}, state_dim={state_dim}, expand={expand}."
            )
        super().__init__(head_dim=state_dim, **options)
        if self.heads % groups or expand * self.dim % self.heads:
            raise UserError(
                "heads must be a multiple of groups, and expand·dim of heads, got "
                f"heads={self.heads}, groups={groups}, expand={expand}, dim={self.dim}."
            )
        self.set_value_dim(expand * self.dim // self.heads)
        bias = self.query.bias is not None
        self.groups = groups
        self.query = nn.Linear(self.dim, groups * state_dim, bias=bias)
        self.key = nn.Linear(self.dim, groups * state_dim, bias=bias)
        self.mixed = (self.heads * self.value_dim, groups * state_dim, groups * state_dim)
        self.convolution = ShortConvolution(sum(self.mixed), kernel_size, bias=True)
        self.step = nn.Linear(self.dim, self.heads, bias=bias)
        self.step_bias = nn.Parameter(step_sizes(self.heads))
        self.rate = nn.Parameter(torch.empty(self.heads).uniform_(1.0, 16.0).log())
        self.skip = nn.Parameter(torch.ones(self.heads))
        self.scale = nn.Parameter(torch.ones(self.heads * self.value_dim))

    @property
    def sizes(self) -> dict[str, int]:
        return super().sizes | {"g": self.groups, "w": self.convolution.kernel_size}

    def attend(
        self, x: Tensor, positions: Tensor, span: Span, start: int, state: State | None
    ) -> tuple[Tensor, State]:
        mixed, last = self.convolution(
            self.unmixed(x),
            state=None if state is None else state[0],
            key_mask=span.key_mask,
            segment_ids=span.segment_ids,
        )
        heads = self.split(mixed, x, positions)
        attended, kept = self.recur(heads, x, span, start, None if state is None else state[1:])
        own = self.skip[:, None, None] * heads.v
        if span.key_mask is not None:
            own = own.masked_fill(~span.key_mask[:, None, :, None], 0.0)
        return attended + own, (last, *kept)

    def weights(self, heads: Heads, x: Tensor, visible: Tensor) -> Tensor:
        oneself = visible.diagonal(dim1=1, dim2=2)[:, None] * self.skip[:, None]
        return super().weights(heads, x, visible) + torch.diag_embed(oneself)

    def heads_of(self, x: Tensor, positions: Tensor, span: Span) -> Heads:
        mixed, _ = self.convolution(
            self.unmixed(x), key_mask=span.key_mask, segment_ids=span.segment_ids
        )
        return self.split(mixed, x, positions)

    def naive_heads(self, x: Tensor, positions: Tensor, visible: Tensor) -> Heads:
        return self.split(self.convolution.naive(self.unmixed(x), visible), x, positions)

    def unmixed(self, x: Tensor) -> Tensor:
        """What the convolution mixes: values, keys and queries side by side."""
        return torch.cat([self.value(x), self.key(x), self.query(x)], dim=-1)

    def split(self, mixed: Tensor, x: Tensor, positions: Tensor) -> Heads:
        """What has been mixed [b t …], as heads; the step is part of the keys."""
        v, k, q = silu(upcast(mixed)).split(self.mixed, dim=-1)
        q, k = (
            repeat_heads(rearrange(part, "b t (g c) -> b g t c", g=self.groups), self.heads)
            for part in (q, k)
        )
        q, k = self.position.rotate(q, k, positions)
        v = rearrange(v, "b t (h e) -> b h t e", h=self.heads)
        step = self.steps(x)
        return Heads(q, k * step, v, -self.rate.exp()[:, None, None] * step)

    def steps(self, x: Tensor) -> Tensor:
        """Δ, [b h t 1]."""
        return softplus(upcast(self.step(x)) + self.step_bias).transpose(1, 2)[..., None]

    def finish(self, attended: Tensor, x: Tensor) -> Tensor:
        y = rearrange(attended, "b h t e -> b t (h e)") * silu(self.gate(x))
        y = y.unflatten(-1, (self.groups, -1))
        y = rms_norm(y, y.shape[-1:], eps=1e-5).flatten(-2) * self.scale
        return self.output(y.to(x.dtype))
