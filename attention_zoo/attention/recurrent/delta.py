"""DeltaNet (Schlag et al. 2021, Yang et al. 2024)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.base import register_recurrent
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.attention.recurrent.delta_rule import DeltaRuleAttention
from attention_zoo.attention.recurrent.naive import run_delta_rule
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.custom_gradients import apply_rms_norm, unit_vectors


@register_recurrent(
    name="delta",
    also_called=("deltanet",),
    paper="Schlag et al. 2021, arXiv 2102.11174, §4; Yang et al. 2024, arXiv 2406.06484, §2.2",
    equation="S ← S − β k (kᵀS) + β k vᵀ;  out = Sᵀ q/√c",
    reference="flash-linear-attention delta_rule_recurrence",
    deviations="as in Yang et al., q and k are unit vectors after SiLU, and an RMS norm of "
    "each head comes last; no short convolutions, which gated_delta has",
    cache="one matrix for each head",
)
class DeltaAttention(DeltaRuleAttention):
    """A matrix stores a value under each key, after the key's earlier value is erased.

        S_t = (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ,   out_t = norm(S_tᵀ q_t / √c)

    with β = σ(W x), and q and k of length 1.

    Args:
        negative_eigenvalues: whether β = 2 σ(W x), so that a token can turn the sign of what the
            state holds under its key (Grazzi et al. 2024, arXiv 2411.12537).
    """

    def __init__(self, *, negative_eigenvalues: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.max_rate = 2.0 if negative_eigenvalues else 1.0
        self.rate = nn.Linear(self.dim, self.heads)
        self.norm = nn.RMSNorm(self.head_dim, eps=1e-5)

    def project_steps(self, x: Tensor, positions: Tensor, convolve: ConvolutionRunner) -> Steps:
        q = unit_vectors(silu(self.split_heads(self.query(x))))
        k = unit_vectors(silu(self.split_heads(self.key(x))))
        v = self.split_heads(self.value(x))
        beta = self.max_rate * self.split_heads(self.rate(x)).sigmoid()
        return Steps(q * self.head_dim**-0.5, beta * k, v, erase=k, rate=beta)

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        return super().project_output(apply_rms_norm(self.norm, attended), x)

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        q, k, v = naive.linear_qkv(self, x)
        beta = self.max_rate * torch.sigmoid(naive.linear_heads(self.rate, x, self.heads))
        attended = run_delta_rule(silu(q), silu(k), v, beta, visible)
        normal = naive.rms_norm(attended, self.norm.weight, epsilon=1e-5)
        return naive.linear_output(self.output, normal)
