"""MesaNet (von Oswald et al. 2025)."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, silu, softplus

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.base import register_recurrent
from attention_zoo.attention.recurrent.chunk_decay import decay_triangle
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner, ShortConvolution
from attention_zoo.attention.recurrent.delta_rule import DeltaRuleAttention
from attention_zoo.attention.recurrent.naive import (
    convolve_heads,
    divide_by_length,
    read_states,
    run_states,
)
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.custom_gradients import apply_rms_norm, unit_vectors
from attention_zoo.errors import check_positive
from attention_zoo.precision import autocast_disabled, safe_divide

MIN_RIDGE = 0.25


@register_recurrent(
    name="mesa",
    also_called=("mesanet",),
    paper="von Oswald et al. 2025, arXiv 2506.05233",
    equation="H ← f H + β k kᵀ,  G ← f G + β k vᵀ;  out = Gᵀ (H + Λ)⁻¹ q",
    reference="flash-linear-attention naive_mesa_net_exact",
    deviations="conjugate gradients start from zero and add no ε to denominators, so that c of "
    "them give the exact solution; f starts near 1, differently from head to head",
    cache="two matrices for each head, and the last tokens of the convolutions",
)
class MesaAttention(DeltaRuleAttention):
    """The linear map from keys to values that fits all tokens so far best, applied to the query.

        H_t = f_t H_{t−1} + β_t k_t k_tᵀ,   G_t = f_t G_{t−1} + β_t k_t v_tᵀ
        out_t = norm(G_tᵀ (H_t + Λ)⁻¹ q_t)

    with f = σ(W x + b), β = σ(W x + b), and Λ = softplus(…) + ¼ on the diagonal. Short convolutions
    and SiLU come before q and k, which are unit vectors. A fixed number of conjugate gradients
    solves the systems of all tokens at once; the gradient is another system, solved likewise.

    Args:
        kernel_size: number of tokens that a convolution mixes, including the token itself.
        iterations: of conjugate gradients.
    """

    decided_options = ("backend",)
    no_decay = ("ridge",)
    convolves_qkv = True

    def __init__(self, *, kernel_size: int = 4, iterations: int = 30, **options: Any) -> None:
        super().__init__(backend="torch", **options)
        check_positive(iterations=iterations)
        self.iterations = iterations
        width = self.heads * self.head_dim
        self.query_convolution = ShortConvolution(width, kernel_size)
        self.key_convolution = ShortConvolution(width, kernel_size)
        self.rate = nn.Linear(self.dim, self.heads)
        self.decay = nn.Linear(self.dim, self.heads)
        # Some heads forget within a few tokens, and others keep hundreds.
        self.decay.bias = nn.Parameter(torch.linspace(1.0, 6.0, self.heads))
        # So that Λ starts at 1.
        start = math.log(math.expm1(1.0 - MIN_RIDGE))
        self.ridge = nn.Parameter(torch.full((self.heads, 1, 1, self.head_dim), start))
        self.norm = nn.RMSNorm(self.head_dim, eps=1e-5)

    def project_steps(self, x: Tensor, positions: Tensor, convolve: ConvolutionRunner) -> Steps:
        q = unit_vectors(silu(self.split_heads(convolve(self.query_convolution, self.query(x)))))
        k = unit_vectors(silu(self.split_heads(convolve(self.key_convolution, self.key(x)))))
        v = self.split_heads(self.value(x))
        beta = self.split_heads(self.rate(x)).sigmoid()
        decay = logsigmoid(self.split_heads(self.decay(x)))
        return Steps(q, beta * k, v, erase=k, decay=decay)

    def full_ridge(self) -> Tensor:
        """Compute Λ, [h 1 1 c]."""
        return softplus(self.ridge) + MIN_RIDGE

    def recurrence(self, steps: Steps, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Solve the systems; the state is H and G side by side, [b h c c+e]."""
        q, weighted, v, k, _, decay, *_ = steps.split_chunks()
        assert k is not None and decay is not None
        decays, from_start = decay_triangle(decay), decay.cumsum(dim=-2).exp()
        keys = (weighted * decays[..., -1, :, None]).mT
        pairs = torch.cat([k, v], dim=-1)
        if state is None:
            state = q.new_zeros(*q.shape[:2], *keys.shape[-2:-1], pairs.shape[-1])
        states = []
        chunks = (part.unbind(dim=2) for part in (from_start[..., -1:, :], keys, pairs))
        for decay_part, keys_part, pairs_part in zip(*chunks, strict=True):
            states.append(state)
            state = decay_part * state + keys_part @ pairs_part
        moments, cross = torch.stack(states, dim=2).split([k.shape[-1], v.shape[-1]], dim=-1)
        system = System(weighted, k, decays, from_start, moments, self.full_ridge())
        solution = solve(system, q, self.iterations)
        out = (from_start * solution) @ cross
        out = out + (solution @ weighted.transpose(-2, -1) * decays) @ v
        return out.flatten(2, 3)[:, :, : steps.q.shape[2]], state

    def state_size(self, tokens: int) -> int:
        return 2 * super().state_size(tokens)

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        return super().project_output(apply_rms_norm(self.norm, attended), x)

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Solve each system exactly."""
        q, k = (
            divide_by_length(convolve_heads(self, name, x, visible)) for name in ("query", "key")
        )
        v = naive.linear_heads(self.value, x, self.heads)
        beta, decay = (
            torch.sigmoid(naive.linear_heads(layer, x, self.heads))
            for layer in (self.rate, self.decay)
        )
        transitions = decay[..., None] * torch.eye(self.head_dim)
        states = run_states(transitions, beta * k, torch.cat([k, v], dim=-1), visible)
        moments, cross = states[..., : self.head_dim], states[..., self.head_dim :]
        ridge = torch.diag_embed(torch.log(1 + torch.exp(self.ridge[:, 0])) + MIN_RIDGE)
        attended = read_states(torch.linalg.solve(moments + ridge, q), cross)
        normal = naive.rms_norm(attended, self.norm.weight, epsilon=1e-5)
        return naive.linear_output(self.output, normal)


class System(NamedTuple):
    """H_t + Λ for every token of every chunk, by its factors."""

    weighted: Tensor  # β k, [b h n s c]
    k: Tensor  # [b h n s c]
    decays: Tensor  # from key to query, zero if the key is later, [b h n s s]
    from_start: Tensor  # decays since the chunk's start, [b h n s 1]
    start: Tensor  # H at the chunk's start, [b h n c c]
    ridge: Tensor  # Λ, [h 1 1 c]

    def multiply(self, x: Tensor) -> Tensor:
        """Compute (H_t + Λ) x_t, [b h n s c]."""
        within = (x @ self.weighted.transpose(-2, -1) * self.decays) @ self.k
        return within + (self.from_start * x) @ self.start + self.ridge * x


def solve(system: System, right: Tensor, iterations: int) -> Tensor:
    """Solve (H_t + Λ) x_t = right_t for x, [b h n s c], by conjugate gradients.

    The gradient is that of the exact solution: with A x = y, dx = A⁻¹ (dy − dA x).
    """
    with torch.no_grad():
        solution = conjugate_gradients(system, right, iterations)
    residual = right - system.multiply(solution)
    return attach_gradient(residual, solution, iterations, *(part.detach() for part in system))


# As a whole: to trace into a Function gives a warning of torch itself.
@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def attach_gradient(residual: Tensor, solution: Tensor, iterations: int, *system: Tensor) -> Tensor:
    """Return the solution, with a gradient by way of its residual."""
    return Solution.apply(residual, solution, iterations, *system)


class Solution(torch.autograd.Function):
    """The solution; the residual gets A⁻¹ times its gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(residual: Tensor, solution: Tensor, iterations: int, *system: Tensor) -> Tensor:
        return solution.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, ctx.iterations, *system = inputs
        ctx.save_for_backward(*system)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # The system is symmetric.
        system = System(*ctx.saved_tensors)
        with autocast_disabled(gradient):
            residual_gradient = conjugate_gradients(system, gradient, ctx.iterations)
        return residual_gradient, None, None, *(None for _ in system)


def conjugate_gradients(system: System, right: Tensor, iterations: int) -> Tensor:
    """Solve a system by the method of Hestenes and Stiefel (1952), from zero."""
    x, residual, direction = torch.zeros_like(right), right, right
    length = residual.square().sum(dim=-1, keepdim=True)
    for _ in range(iterations):
        change = system.multiply(direction)
        # Both are zero where the solution has been reached.
        step = safe_divide(length, (direction * change).sum(dim=-1, keepdim=True))
        x, residual = x + step * direction, residual - step * change
        before, length = length, residual.square().sum(dim=-1, keepdim=True)
        direction = residual + safe_divide(length, before) * direction
    return x
