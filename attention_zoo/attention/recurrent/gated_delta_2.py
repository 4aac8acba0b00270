"""Gated DeltaNet-2 (Hatamizadeh et al. 2026)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.base import STEP_SEARCH_SPACE, register_recurrent
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.attention.recurrent.kimi_delta import KimiDeltaAttention
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
    name="gated_delta_2",
    also_called=("gated_deltanet_2", "gdn2"),
    paper="Hatamizadeh et al. 2026, arXiv 2605.22791",
    equation="S ← Diag(exp g) S;  S ← S − k ((b ⊙ k)ᵀS) + k (w ⊙ v)ᵀ;  out = Sᵀ q/√c",
    reference="flash-linear-attention naive_recurrent_gdn2",
    cache="one matrix for each head, and the last tokens of the convolutions",
    search_space=STEP_SEARCH_SPACE,
)
class GatedDelta2Attention(KimiDeltaAttention):
    """Kimi delta attention whose rate β is two gates: what to erase, and what to write.

        S' = Diag(exp g_t) S_{t−1},   S_t = S' + k_t (w_t ⊙ v_t − S'ᵀ (b_t ⊙ k_t))ᵀ
        out_t = norm(S_tᵀ q_t / √c) ⊙ σ(W x_t + b)

    with a gate b = σ(W x) for each channel of the keys and a gate w = σ(W x) for each channel of
    the values. All else is as in `kimi_delta`.

    Args:
        kernel_size: number of tokens that a convolution mixes, including the token itself.
        time_step_max: as in `GatedDeltaAttention`.
    """

    # The kernels take one rate for both gates; eigenvalues are those of the paper.
    decided_options = ("backend", "negative_eigenvalues")

    def __init__(self, **options: Any) -> None:
        super().__init__(backend="torch", **options)
        width = self.heads * self.head_dim
        del self.rate
        self.erase = nn.Linear(self.dim, width, bias=False)
        self.write = nn.Linear(self.dim, width, bias=False)

    def project_steps(self, x: Tensor, positions: Tensor, convolve: ConvolutionRunner) -> Steps:
        q = silu(self.split_heads(convolve(self.query_convolution, self.query(x))))
        k = silu(self.split_heads(convolve(self.key_convolution, self.key(x))))
        v = silu(self.split_heads(convolve(self.value_convolution, self.value(x))))
        q, k = unit_vectors(q, length=self.head_dim**-0.5), unit_vectors(k)
        erase, write = (self.split_heads(gate(x)).sigmoid() for gate in (self.erase, self.write))
        return Steps(q, k, write * v, erase=erase * k, decay=self.log_decay(x))

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        q, k, v = (convolve_heads(self, name, x, visible) for name in ("query", "key", "value"))
        q, k = divide_by_length(q), divide_by_length(k)
        b, w = (
            torch.sigmoid(naive.linear_heads(layer, x, self.heads))
            for layer in (self.erase, self.write)
        )
        transitions = torch.eye(self.head_dim) - outer(k, b * k)
        transitions = transitions * self.naive_decay(x)[..., None, :]
        attended = read_states(q, run_states(transitions, k, w * v, visible))
        attended = attended / math.sqrt(self.head_dim)
        normal = naive.rms_norm(attended, self.norm.weight, epsilon=self.norm_epsilon)
        return naive.linear_output(self.output, normal * self.naive_gate(x))
