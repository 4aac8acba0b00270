"""Comba (Hu et al. 2025)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.base import STEP_SEARCH_SPACE, register_recurrent
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.attention.recurrent.delta_rule import delta_rule
from attention_zoo.attention.recurrent.gated_delta import GatedDeltaAttention
from attention_zoo.attention.recurrent.naive import (
    convolve_heads,
    divide_by_length,
    outer,
    read_states,
    run_states,
)
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.custom_gradients import unit_vectors


@register_recurrent(
    name="comba",
    paper="Hu et al. 2025, arXiv 2506.02475, eq. 5",
    equation="S ← exp(g) S − β k (pᵀS) + β k vᵀ;  out = Sᵀ q/√c,  q ∝ q − d σ(b) k",
    reference="flash-linear-attention naive_chunk_comba",
    deviations="as in the authors' code, p is a unit vector, so that what is erased has the factor "
    "β, and the output correction the factor d σ(b); the paper erases with σ(b) β, and corrects "
    "with d alone, which paper_feedback=true does; values are as wide as keys",
    cache="one matrix for each head, and the last tokens of the convolutions",
    # The authors take 0.02 for small models.
    search_space={"correction": (0.02, 0.3), **STEP_SEARCH_SPACE},
)
class CombaAttention(GatedDeltaAttention):
    """Gated delta attention that erases what the state held before it decays, and corrects queries.

        S_t = exp(g_t) S_{t−1} + β_t k_t (v_t − S_{t−1}ᵀ p_t)ᵀ
        out_t = norm(S_tᵀ q_t / √c) ⊙ σ(W x_t)

    with k, p and q the unit vectors along y, σ(b) y and x − d σ(b) y, where y and x are the keys
    and queries after the convolutions and SiLU, and b and d are numbers of a head. So p is k. All
    else is as in `gated_delta`.

    Args:
        kernel_size: number of tokens that a convolution mixes, including the token itself.
        correction: d at the start; the authors use 1 for large models, and 0.02 for small ones.
        paper_feedback: whether p = σ(b) k, and q is the unit vector along x − d y: the equation of
            the paper, in which b decides how much is erased.
        time_step_max: as in `GatedDeltaAttention`.
    """

    # The kernels read the state after it decays; eigenvalues are those of the paper.
    decided_options = ("backend", "negative_eigenvalues")
    norm_epsilon = 1e-5

    def __init__(
        self, *, correction: float = 1.0, paper_feedback: bool = False, **options: Any
    ) -> None:
        super().__init__(backend="torch", **options)
        self.paper_feedback = paper_feedback
        self.feedback = nn.Parameter(torch.ones(self.heads))
        self.correction = nn.Parameter(torch.full((self.heads,), float(correction)))

    def project_steps(self, x: Tensor, positions: Tensor, convolve: ConvolutionRunner) -> Steps:
        q = silu(self.split_heads(convolve(self.query_convolution, self.query(x))))
        key = silu(self.split_heads(convolve(self.key_convolution, self.key(x))))
        v = silu(self.split_heads(convolve(self.value_convolution, self.value(x))))
        k = unit_vectors(key)
        share, correction = self.feedback.sigmoid()[:, None, None], self.correction[:, None, None]
        if self.paper_feedback:
            erased, corrected = share * k, q - correction * key
        else:
            erased, corrected = unit_vectors(share * key), q - correction * share * key
        q = unit_vectors(corrected, length=self.head_dim**-0.5)
        beta = self.split_heads(self.rate(x)).sigmoid()
        return Steps(q, beta * k, v, erase=erased, decay=self.log_decay(x), rate=beta)

    def recurrence(self, steps: Steps, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return delta_rule(steps, state, erase_first=True)

    def output_gate(self, x: Tensor) -> Tensor:
        return self.split_heads(self.gate(x)).sigmoid()

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        q, key, v = (convolve_heads(self, name, x, visible) for name in ("query", "key", "value"))
        share = torch.sigmoid(self.feedback)[:, None, None]
        k = divide_by_length(key)
        if self.paper_feedback:
            p, q = share * k, q - self.correction[:, None, None] * key
        else:
            p = divide_by_length(share * key)
            q = q - self.correction[:, None, None] * share * key
        beta = torch.sigmoid(naive.linear_heads(self.rate, x, self.heads))
        kept = self.naive_decay(x)[..., None] * torch.eye(self.head_dim)
        states = run_states(kept - outer(beta * k, p), beta * k, v, visible)
        attended = read_states(divide_by_length(q), states) / math.sqrt(self.head_dim)
        normal = naive.rms_norm(attended, self.norm.weight, epsilon=self.norm_epsilon)
        return naive.linear_output(self.output, normal * self.naive_gate(x))

    def naive_gate(self, x: Tensor) -> Tensor:
        return torch.sigmoid(naive.linear_heads(self.gate, x, self.heads))
