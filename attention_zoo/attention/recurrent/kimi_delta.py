"""Kimi Delta Attention (Kimi Team 2025)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.base import (
    STEP_SEARCH_SPACE,
    create_low_rank_linear,
    draw_step_bias,
    register_recurrent,
)
from attention_zoo.attention.recurrent.gated_delta import GatedDeltaAttention
from attention_zoo.attention.recurrent.naive import low_rank_linear
from attention_zoo.precision import upcast


@register_recurrent(
    name="kimi_delta",
    also_called=("kda",),
    paper="Kimi Team 2025, arXiv 2510.26692",
    equation="S ← Diag(exp g) S;  S ← S − β k (kᵀS) + β k vᵀ;  out = Sᵀ q/√c",
    reference="flash-linear-attention naive_recurrent_kda",
    cache="one matrix for each head, and the last tokens of the convolutions",
    search_space=STEP_SEARCH_SPACE,
)
class KimiDeltaAttention(GatedDeltaAttention):
    """Gated delta attention in which every channel of the keys decays separately.

        S' = Diag(exp g_t) S_{t−1},   S_t = S' + β_t k_t (v_t − S'ᵀ k_t)ᵀ
        out_t = norm(S_tᵀ q_t / √c) ⊙ σ(W x_t + b)

    with g = −exp(A) softplus(W x + b), A of the head. The projections to decays and to gates
    pass through c channels.

    Args:
        kernel_size: number of tokens that a convolution mixes, including the token itself.
        negative_eigenvalues: as in `GatedDeltaAttention`.
        time_step_max: as in `GatedDeltaAttention`.
    """

    norm_epsilon = 1e-5

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        width = self.heads * self.head_dim
        self.decay = create_low_rank_linear(self.dim, self.head_dim, width, bias=False)
        self.step_bias = nn.Parameter(draw_step_bias(width, self.time_step_max))
        self.gate = create_low_rank_linear(self.dim, self.head_dim, width, bias=True)

    def log_decay(self, x: Tensor) -> Tensor:
        sizes = self.split_heads(softplus(upcast(self.decay(x)) + self.step_bias))
        return -self.log_speed.exp()[:, None, None] * sizes

    def output_gate(self, x: Tensor) -> Tensor:
        return self.split_heads(self.gate(x)).sigmoid()

    def naive_decay(self, x: Tensor) -> Tensor:
        sizes = naive.split_heads(
            softplus(low_rank_linear(self.decay, x) + self.step_bias), self.heads
        )
        return torch.exp(-torch.exp(self.log_speed)[:, None, None] * sizes)

    def naive_gate(self, x: Tensor) -> Tensor:
        return torch.sigmoid(naive.split_heads(low_rank_linear(self.gate, x), self.heads))
