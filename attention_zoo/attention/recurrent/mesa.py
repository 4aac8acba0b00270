"""MesaNet (von Oswald et al. 2025)."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, silu, softplus

from attention_zoo.attention.precision import autocast_disabled, upcast
from attention_zoo.attention.recurrent.convolution import ShortConvolution
from attention_zoo.attention.recurrent.delta_attention import (
    DeltaRuleAttention,
    Mix,
    outer,
    unit,
)
from attention_zoo.attention.recurrent.delta_rule import (
    Steps,
    decayed_products,
    in_chunks,
    since_start,
)
from attention_zoo.attention.recurrent.recurrence import sum_after
from attention_zoo.errors import UserError
from attention_zoo.zoo import ATTENTION, AttentionCard

LEAST_RIDGE = 0.25


@ATTENTION.register(
    AttentionCard(
        name="mesa",
        paper="von Oswald et al. 2025, arXiv 2506.05233",
        equation="H ← f H + β k kᵀ,  G ← f G + β k vᵀ;  out = Gᵀ (H + Λ)⁻¹ q",
        reference="flash-linear-attention naive_mesa_net_exact",
        deviations="conjugate gradients start from zero and add nothing to what they divide by, so "
        "that c of them give the exact solution; f starts near 1, differently from head to head",
        roles=("causal",),
        masks=("causal", "key_mask", "segment_ids"),
        positions=("positions", "embeddings"),
        cache="two matrices for each head, and the tokens that the convolutions look back at",
        decode_state="2·h·c·c + 2·(K - 1)·h·c",
        weights="signed",
        cost="t",
    )
)
class MesaAttention(DeltaRuleAttention):
    """The linear map from keys to values that fits all tokens so far best, applied to the query:

        H_t = f_t H_{t−1} + β_t k_t k_tᵀ,   G_t = f_t G_{t−1} + β_t k_t v_tᵀ
        out_t = norm(G_tᵀ (H_t + Λ)⁻¹ q_t)

    with f = σ(W x + b), β = σ(W x + b), and Λ = softplus(…) + ¼ on the diagonal. Short convolutions
    and SiLU come before q and k, which are unit vectors. The system is solved for all tokens at
    once by a fixed number of conjugate gradients; its gradient is another one, solved likewise.

    Args:
        kernel_size: K, the tokens that a convolution mixes, oneself included.
        iterations: of conjugate gradients.
    """

    decided_options = ("backend",)

    def __init__(self, *, kernel_size: int = 4, iterations: int = 30, **options: Any) -> None:
        super().__init__(backend="torch", **options)
        if iterations < 1:
            raise UserError(f"iterations must be at least 1, got {iterations}.")
        self.iterations = iterations
        width = self.heads * self.head_dim
        self.query_convolution = ShortConvolution(width, kernel_size)
        self.key_convolution = ShortConvolution(width, kernel_size)
        self.rate = nn.Linear(self.dim, self.heads)
        self.decay = nn.Linear(self.dim, self.heads)
        # Some heads forget within a few tokens, and some keep hundreds.
        self.decay.bias = nn.Parameter(torch.linspace(1.0, 6.0, self.heads))
        # So that Λ starts from 1.
        start = math.log(math.expm1(1.0 - LEAST_RIDGE))
        self.ridge = nn.Parameter(torch.full((self.heads, 1, 1, self.head_dim), start))
        self.norm = nn.RMSNorm(self.head_dim, eps=1e-5)

    @property
    def sizes(self) -> dict[str, int]:
        return super().sizes | {"K": self.query_convolution.kernel_size}

    def steps(self, x: Tensor, mix: Mix) -> Steps:
        q = unit(silu(self.heads_of(mix(self.query_convolution, self.query(x)))))
        k = unit(silu(self.heads_of(mix(self.key_convolution, self.key(x)))))
        v = self.heads_of(self.value(x))
        beta = upcast(self.rate(x)).sigmoid().transpose(1, 2)[..., None]
        decay = logsigmoid(upcast(self.decay(x))).transpose(1, 2)[..., None]
        return Steps(q, beta * k, v, erase=k, decay=decay)

    def full_ridge(self) -> Tensor:
        """Λ, [h 1 1 c]."""
        return softplus(self.ridge) + LEAST_RIDGE

    def recur(self, steps: Steps, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The state is [b h c c+e], H beside G."""
        width, length = steps.q.shape[-1], steps.q.shape[2]
        q, weighted, v, k, decay = in_chunks(steps)
        assert decay is not None
        since, sums = since_start(decay).exp(), torch.cat([k, v], dim=-1)
        kept = (weighted * sum_after(decay).exp()).transpose(-2, -1)
        if state is None:
            state = q.new_zeros(*q.shape[:2], *kept.shape[-2:-1], sums.shape[-1])
        states = []
        chunks = (part.unbind(dim=2) for part in (since[..., -1:, :], kept, sums))
        for whole, kept_part, sums_part in zip(*chunks, strict=True):
            states.append(state)
            state = whole * state + kept_part @ sums_part
        moments, cross = torch.stack(states, dim=2).split([width, v.shape[-1]], dim=-1)
        ones = torch.ones_like(q[..., :1])
        decays = decayed_products(ones, ones, decay)
        system = System(weighted, k, decays, since, moments, self.full_ridge())
        solution = solve(system, q, self.iterations)
        out = (since * solution) @ cross
        out = out + (solution @ weighted.transpose(-2, -1) * decays) @ v
        return out.flatten(2, 3)[:, :, :length], state

    def naive_reading(self, steps: Steps, visible: Tensor) -> Tensor:
        """With exact solutions."""
        q, weighted, v, k, _, decay, _ = steps
        assert decay is not None
        real, fresh = visible.diagonal(dim1=1, dim2=2), ~visible.tril(-1).any(dim=-1)
        moments, cross = (k.new_zeros(*k[:, :, 0].shape, x.shape[-1]) for x in (k, v))
        ridge, outputs = torch.diag_embed(self.full_ridge()[:, 0, 0]), []
        for t in range(q.shape[2]):
            rate = torch.where(real[:, t, None, None, None], decay[:, :, t, None].exp(), 1.0)
            rate = rate.masked_fill(fresh[:, t, None, None, None], 0.0)
            key = weighted[:, :, t] * real[:, t, None, None]
            moments = rate * moments + outer(key, k[:, :, t])
            cross = rate * cross + outer(key, v[:, :, t])
            solution = torch.linalg.solve(moments + ridge, q[:, :, t])
            outputs.append((solution[..., None] * cross).sum(dim=-2))
        return torch.stack(outputs, dim=2)

    def finish(self, attended: Tensor, x: Tensor) -> Tensor:
        return self.project_output(self.norm(attended).to(x.dtype))


class System(NamedTuple):
    """H_t + Λ for every token of every chunk, by what H_t is made of."""

    weighted: Tensor  # β k, [b h n s c]
    k: Tensor  # [b h n s c]
    decays: Tensor  # from key to query, zero where the key is later, [b h n s s]
    since: Tensor  # decays since the chunk's start, [b h n s 1]
    before: Tensor  # H at the chunk's start, [b h n c c]
    ridge: Tensor  # Λ, [h 1 1 c]

    def times(self, x: Tensor) -> Tensor:
        """(H_t + Λ) x_t, [b h n s c]."""
        own = (x @ self.weighted.transpose(-2, -1) * self.decays) @ self.k
        return own + (self.since * x) @ self.before + self.ridge * x


def solve(system: System, right: Tensor, iterations: int) -> Tensor:
    """X with (H_t + Λ) x_t = right_t, [b h n s c], by conjugate gradients.

    The gradient is that of the exact solution: with A x = y, dx = A⁻¹ (dy − dA x).
    """
    with torch.no_grad():
        solution = conjugate_gradients(system, right, iterations)
    residual = right - system.times(solution)
    return solved(residual, solution, iterations, *(part.detach() for part in system))


# Whole: to trace into a Function gives a warning of torch's own.
@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def solved(residual: Tensor, solution: Tensor, iterations: int, *system: Tensor) -> Tensor:
    return Solution.apply(residual, solution, iterations, *system)


class Solution(torch.autograd.Function):
    """The solution that has the residual; to the residual passes A⁻¹ times the gradient."""

    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, solution: Tensor, iterations: int, *system: Tensor
    ) -> Tensor:
        ctx.iterations = iterations
        ctx.save_for_backward(*system)
        return solution.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        system = System(*ctx.saved_tensors)
        with autocast_disabled(gradient):
            # A is symmetric.
            passed = conjugate_gradients(system, gradient, ctx.iterations)
        return passed, None, None, *(None for _ in system)


def conjugate_gradients(system: System, right: Tensor, iterations: int) -> Tensor:
    """Of Hestenes and Stiefel (1952), from zero."""
    x, residual, direction = torch.zeros_like(right), right, right
    length = residual.square().sum(dim=-1, keepdim=True)
    for _ in range(iterations):
        change = system.times(direction)
        step = divided(length, (direction * change).sum(dim=-1, keepdim=True))
        x, residual = x + step * direction, residual - step * change
        before, length = length, residual.square().sum(dim=-1, keepdim=True)
        direction = residual + divided(length, before) * direction
    return x


def divided(above: Tensor, below: Tensor) -> Tensor:
    """Above / below, and zero where a solution has been reached, so that both are zero."""
    return above / below.masked_fill(below == 0.0, 1.0)
