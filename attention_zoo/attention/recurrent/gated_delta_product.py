"""Gated DeltaProduct (Siems et al. 2025)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.base import (
    STEP_SEARCH_SPACE,
    draw_step_bias,
    register_recurrent,
)
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner, ShortConvolution
from attention_zoo.attention.recurrent.delta_product import DeltaProductAttention
from attention_zoo.precision import upcast


@register_recurrent(
    name="gated_delta_product",
    paper="Siems et al. 2025, arXiv 2502.10297",
    equation="S ← exp(g) S;  S ← S − β_j k_j (k_jᵀS) + β_j k_j v_jᵀ for j = 1 … n;  out = Sᵀ q/√c",
    reference="flash-linear-attention naive_recurrent_gated_delta_product",
    deviations="values are as wide as keys; each of the n keys of a state has a map of its own, as "
    "it has a value of its own",
    cache="one matrix for each state, and the last tokens of the convolutions",
    search_space=STEP_SEARCH_SPACE,
)
class GatedDeltaProductAttention(DeltaProductAttention):
    """Several steps of the delta rule for each token, on a state that decays before the first.

        S_{t,0} = exp(g_t) S_{t−1,n}
        S_{t,j} = (I − β_{t,j} k_{t,j} k_{t,j}ᵀ) S_{t,j−1} + β_{t,j} k_{t,j} v_{t,j}ᵀ,   j = 1 … n
        out_t = norm(S_{t,n}ᵀ q_t / √c) ⊙ SiLU(W x_t)

    with g = −exp(A) softplus(W x + b) and β = 2 σ(W x). Short convolutions and SiLU come before
    q, k and v; then q and k become unit vectors.

    Args:
        heads, num_householder, negative_eigenvalues: as in `DeltaProductAttention`.
        kernel_size: number of tokens that a convolution mixes, including the token itself.
        time_step_max: as in `GatedDeltaAttention`.
    """

    convolves_qkv = True

    def __init__(self, *, kernel_size: int = 4, time_step_max: float = 0.1, **options: Any) -> None:
        super().__init__(**options)
        width, states = self.heads * self.head_dim, self.num_matrices
        self.query_convolution = ShortConvolution(states * self.head_dim, kernel_size)
        self.key_convolution = ShortConvolution(width, kernel_size)
        self.value_convolution = ShortConvolution(width, kernel_size)
        self.rate = nn.Linear(self.dim, self.heads, bias=False)
        self.decay = nn.Linear(self.dim, states, bias=False)
        self.log_speed = nn.Parameter(torch.empty(states).uniform_(1, 16).log())
        self.step_bias = nn.Parameter(draw_step_bias(states, time_step_max))
        self.gate = nn.Linear(self.dim, states * self.head_dim, bias=False)

    def project_qkv(self, x: Tensor, convolve: ConvolutionRunner) -> tuple[Tensor, Tensor, Tensor]:
        q = self.split_states(silu(convolve(self.query_convolution, self.query(x))))
        k = self.split_heads(silu(convolve(self.key_convolution, self.key(x))))
        return q, k, self.split_heads(silu(convolve(self.value_convolution, self.value(x))))

    def log_decay(self, x: Tensor) -> Tensor:
        sizes = softplus(upcast(self.decay(x)) + self.step_bias)
        return self.split_states(-self.log_speed.exp() * sizes)

    def normalise(self, attended: Tensor, x: Tensor) -> Tensor:
        return super().normalise(attended, x) * silu(self.split_states(self.gate(x)))

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        counts = {"query": self.num_matrices, "key": self.heads, "value": self.heads}
        q, k, v = (
            silu(
                naive.split_heads(
                    getattr(self, f"{name}_convolution").naive(
                        naive.linear(getattr(self, name), x), visible
                    ),
                    count,
                )
            )
            for name, count in counts.items()
        )
        logits = naive.linear_heads(self.decay, x, self.num_matrices)
        sizes = softplus(logits + self.step_bias[:, None, None])
        decay = torch.exp(-torch.exp(self.log_speed)[:, None, None] * sizes)
        attended = self.naive_product(q, k, v, x, visible, decay)
        normal = naive.rms_norm(attended, self.norm.weight, epsilon=1e-5)
        gate = silu(naive.linear_heads(self.gate, x, self.num_matrices))
        return naive.linear_output(self.output, normal * gate)
