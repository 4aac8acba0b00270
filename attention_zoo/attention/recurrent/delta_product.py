"""DeltaProduct (Siems et al. 2025)."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.base import register_recurrent
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.attention.recurrent.delta_rule import DeltaRuleAttention
from attention_zoo.attention.recurrent.naive import (
    divide_by_length,
    outer,
    read_states,
    run_additions,
)
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.custom_gradients import apply_rms_norm, unit_vectors
from attention_zoo.errors import check_positive
from attention_zoo.masks import TokenSpan
from attention_zoo.precision import upcast


@register_recurrent(
    name="delta_product",
    paper="Siems et al. 2025, arXiv 2502.10297",
    equation="S ← S − β_j k_j (k_jᵀS) + β_j k_j v_jᵀ for j = 1 … n;  out = Sᵀ q/√c",
    reference="flash-linear-attention naive_recurrent_gated_delta_product",
    deviations="no short convolutions, which gated_delta_product has; each of the n keys of a "
    "state has a map of its own, as it has a value of its own",
    cache="one matrix for each state",
)
class DeltaProductAttention(DeltaRuleAttention):
    """A delta rule that takes several steps for each token, under several keys.

        S_{t,j} = (I − β_{t,j} k_{t,j} k_{t,j}ᵀ) S_{t,j−1} + β_{t,j} k_{t,j} v_{t,j}ᵀ,   j = 1 … n
        S_{t,0} = S_{t−1,n},   out_t = norm(S_{t,n}ᵀ q_t / √c)

    So a token multiplies the state by a product of n generalised Householder matrices, which can
    be a rotation. q and k are unit vectors after SiLU, and β = 2 σ(W x).

    After construction, `heads` counts the keys of a token, n for each state: a map shows what one
    of them adds to the output.

    Args:
        heads: number of states; each is read by one query.
        num_householder: n.
        negative_eigenvalues: whether β goes up to 2; otherwise up to 1.
    """

    def __init__(
        self, *, num_householder: int = 2, negative_eigenvalues: bool = True, **options: Any
    ) -> None:
        super().__init__(**options)
        check_positive(num_householder=num_householder)
        self.max_rate = 2.0 if negative_eigenvalues else 1.0
        self.num_householder = num_householder
        self.num_matrices = self.heads
        self.heads *= num_householder
        bias = self.query.bias is not None
        width = self.heads * self.head_dim
        self.key = nn.Linear(self.dim, width, bias=bias)
        self.value = nn.Linear(self.dim, width, bias=bias)
        self.rate = nn.Linear(self.dim, self.heads)
        self.norm = nn.RMSNorm(self.head_dim, eps=1e-5)

    def project_steps(self, x: Tensor, positions: Tensor, convolve: ConvolutionRunner) -> Steps:
        q, k, v = self.project_qkv(x, convolve)
        q, k = unit_vectors(q, length=self.head_dim**-0.5), unit_vectors(k)
        beta = self.max_rate * self.split_heads(self.rate(x)).sigmoid()
        return Steps(q, beta * k, v, erase=k, decay=self.log_decay(x), rate=beta)

    def project_qkv(self, x: Tensor, convolve: ConvolutionRunner) -> tuple[Tensor, Tensor, Tensor]:
        """Compute q [b g t c] for g states, and k and v [b (g n) t c], of any length."""
        q, k = self.split_states(silu(self.query(x))), self.split_heads(silu(self.key(x)))
        return q, k, self.split_heads(self.value(x))

    def log_decay(self, x: Tensor) -> Tensor | None:
        """Return the log decay of each state before its first step, [b g t 1], if there is one."""
        return None

    def split_states(self, y: Tensor) -> Tensor:
        """Split [b t (g c)] into states [b g t c], in float32 at least."""
        return upcast(rearrange(y, "b t (g c) -> b g t c", g=self.num_matrices))

    def unroll_steps(self, steps: Steps) -> Steps:
        """Return a step for each key: [b g (t n) …]. The decay comes first, the query last."""
        q, k, v, erase, _, decay, rate, _ = steps
        assert erase is not None and rate is not None
        n = self.num_householder
        k, v, erase, rate = (
            rearrange(part, "b (g n) t c -> b g (t n) c", n=n) for part in (k, v, erase, rate)
        )
        q = pad(q[:, :, :, None], (0, 0, n - 1, 0)).flatten(2, 3)
        if decay is not None:
            decay = pad(decay[:, :, :, None], (0, 0, 0, n - 1)).flatten(2, 3)
        return Steps(q, k, v, erase, decay=decay, rate=rate)

    def recurrence(self, steps: Steps, state: Tensor | None) -> tuple[Tensor, Tensor]:
        out, state = super().recurrence(self.unroll_steps(steps), state)
        return out[:, :, self.num_householder - 1 :: self.num_householder], state

    def implied_weights(self, steps: Steps, x: Tensor, span: TokenSpan) -> Tensor:
        unrolled = self.unroll_steps(steps.apply_mask(span)).use_unit_values()
        weights, _ = super().recurrence(unrolled, None)
        weights = weights[:, :, self.num_householder - 1 :: self.num_householder]
        return rearrange(weights, "b g q (k n) -> b (g n) q k", n=self.num_householder)

    def state_size(self, tokens: int) -> int:
        return self.num_matrices * self.head_dim**2

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        # Summed over the keys of a state, where each has its own part, as by a map.
        attended = attended.unflatten(1, (self.num_matrices, -1)).sum(dim=2)
        return super().project_output(self.normalise(attended, x), x)

    def normalise(self, attended: Tensor, x: Tensor) -> Tensor:
        """Normalise what the states give [b g t c] to tokens x."""
        return apply_rms_norm(self.norm, attended)

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        q = silu(naive.linear_heads(self.query, x, self.num_matrices))
        k = silu(naive.linear_heads(self.key, x, self.heads))
        v = naive.linear_heads(self.value, x, self.heads)
        attended = self.naive_product(q, k, v, x, visible)
        normal = naive.rms_norm(attended, self.norm.weight, epsilon=1e-5)
        return naive.linear_output(self.output, normal)

    def naive_product(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        x: Tensor,
        visible: Tensor,
        decay: Tensor | None = None,
    ) -> Tensor:
        """Compute Sᵀ q/√c [b g t e] for S_t = A_t a_t S_{t−1} + B_t, with a decay a [b g t 1].

        Of a token, A is the product of all I − β_j k_j k_jᵀ, the last j at the left; B is the sum
        of the β_j k_j v_jᵀ, each multiplied by those of later j.
        """
        n = self.num_householder
        q, k = divide_by_length(q), divide_by_length(k)
        beta = self.max_rate * torch.sigmoid(naive.linear_heads(self.rate, x, self.heads))
        identity = torch.eye(self.head_dim, dtype=q.dtype)
        product = identity.expand(*q.shape, -1)
        if decay is not None:
            product = decay[..., None] * product
        addition = torch.zeros_like(product)
        for j in range(n):
            k_j, v_j, beta_j = (part[:, j::n] for part in (k, v, beta))
            householder = identity - outer(beta_j * k_j, k_j)
            product = householder @ product
            addition = householder @ addition + outer(beta_j * k_j, v_j)
        return read_states(q, run_additions(product, addition, visible)) / self.head_dim**0.5
