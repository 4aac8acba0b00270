"""Gated DeltaNet (Yang et al. 2024)."""

from typing import Any, ClassVar

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
from attention_zoo.attention.recurrent.delta_rule import DeltaRuleAttention
from attention_zoo.attention.recurrent.naive import convolve_heads, run_delta_rule
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.custom_gradients import apply_rms_norm, unit_vectors
from attention_zoo.precision import upcast


@register_recurrent(
    name="gated_delta",
    also_called=("gated_deltanet", "gdn"),
    paper="Yang et al. 2024, arXiv 2412.06464",
    equation="S ← exp(g) S;  S ← S − β k (kᵀS) + β k vᵀ;  out = Sᵀ q/√c",
    reference="transformers Qwen3NextGatedDeltaNet",
    deviations="values are as wide as keys, and heads do not share keys",
    cache="one matrix for each head, and the last tokens of the convolutions",
    search_space=STEP_SEARCH_SPACE,
)
class GatedDeltaAttention(DeltaRuleAttention):
    """The delta rule on a state that decays first, by one number for each head.

        S' = exp(g_t) S_{t−1},   S_t = S' + β_t k_t (v_t − S'ᵀ k_t)ᵀ
        out_t = norm(S_tᵀ q_t / √c) ⊙ SiLU(W x_t)

    with g = −exp(A) softplus(W x + b) and β = σ(W x). Short convolutions and SiLU come before
    q, k and v; then q and k become unit vectors.

    Args:
        kernel_size: number of tokens that a convolution mixes, including the token itself.
        negative_eigenvalues: whether β = 2 σ(W x), so that a token can turn the sign of what the
            state holds under its key (Grazzi et al. 2024, arXiv 2411.12537).
        time_step_max: largest softplus(b) at the start; above 0.1, states forget more quickly.
    """

    norm_epsilon: ClassVar[float] = 1e-6

    convolves_qkv = True

    def __init__(
        self,
        *,
        kernel_size: int = 4,
        negative_eigenvalues: bool = False,
        time_step_max: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.max_rate = 2.0 if negative_eigenvalues else 1.0
        self.time_step_max = time_step_max
        width = self.heads * self.head_dim
        self.query_convolution = ShortConvolution(width, kernel_size)
        self.key_convolution = ShortConvolution(width, kernel_size)
        self.value_convolution = ShortConvolution(width, kernel_size)
        self.rate = nn.Linear(self.dim, self.heads, bias=False)
        self.decay: Any = nn.Linear(self.dim, self.heads, bias=False)
        self.log_speed = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.step_bias = nn.Parameter(draw_step_bias(self.heads, time_step_max))
        self.gate: Any = nn.Linear(self.dim, width, bias=False)
        self.norm = nn.RMSNorm(self.head_dim, eps=self.norm_epsilon)

    def project_steps(self, x: Tensor, positions: Tensor, convolve: ConvolutionRunner) -> Steps:
        q = silu(self.split_heads(convolve(self.query_convolution, self.query(x))))
        k = silu(self.split_heads(convolve(self.key_convolution, self.key(x))))
        v = silu(self.split_heads(convolve(self.value_convolution, self.value(x))))
        q, k = unit_vectors(q, length=self.head_dim**-0.5), unit_vectors(k)
        beta = self.max_rate * self.split_heads(self.rate(x)).sigmoid()
        return Steps(q, beta * k, v, erase=k, decay=self.log_decay(x), rate=beta)

    def log_decay(self, x: Tensor) -> Tensor:
        """Compute g, [b h t 1|c]."""
        sizes = softplus(upcast(self.decay(x)) + self.step_bias)
        return self.split_heads(-self.log_speed.exp() * sizes)

    def output_gate(self, x: Tensor) -> Tensor:
        """Compute the gate of the outputs, [b h t c]."""
        return silu(self.split_heads(self.gate(x)))

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        return super().project_output(apply_rms_norm(self.norm, attended) * self.output_gate(x), x)

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        q, k, v = (convolve_heads(self, name, x, visible) for name in ("query", "key", "value"))
        beta = self.max_rate * torch.sigmoid(naive.linear_heads(self.rate, x, self.heads))
        attended = run_delta_rule(q, k, v, beta, visible, self.naive_decay(x))
        normal = naive.rms_norm(attended, self.norm.weight, epsilon=self.norm_epsilon)
        return naive.linear_output(self.output, normal * self.naive_gate(x))

    def naive_decay(self, x: Tensor) -> Tensor:
        """Compute exp g, [b h t 1|c]."""
        logits = naive.linear_heads(self.decay, x, self.heads)
        sizes = softplus(logits + self.step_bias[:, None, None])
        return torch.exp(-torch.exp(self.log_speed)[:, None, None] * sizes)

    def naive_gate(self, x: Tensor) -> Tensor:
        """Compute the gate of the outputs, [b h t c]."""
        return silu(naive.linear_heads(self.gate, x, self.heads))
