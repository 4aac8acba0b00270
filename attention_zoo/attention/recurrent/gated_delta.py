"""Gated DeltaNet (Yang et al. 2024)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from attention_zoo.attention.precision import upcast
from attention_zoo.attention.recurrent.convolution import ShortConvolution
from attention_zoo.attention.recurrent.delta_attention import (
    DeltaRuleAttention,
    Mix,
    unit,
)
from attention_zoo.attention.recurrent.delta_rule import Steps
from attention_zoo.attention.recurrent.recurrence import step_sizes
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="gated_delta",
        paper="Yang et al. 2024, arXiv 2412.06464",
        equation="S ← exp(g) S;  S ← S − β k (kᵀS) + β k vᵀ;  out = Sᵀ q/√c",
        reference="transformers Qwen3NextGatedDeltaNet",
        deviations="values are as wide as keys, and all heads have keys of their own",
        roles=("causal",),
        masks=("causal", "key_mask", "segment_ids"),
        positions=("positions", "embeddings"),
        cache="one matrix for each head, and the tokens that the convolutions look back at",
        decode_state="h·c·c + 3·(K - 1)·h·c",
        weights="signed",
        cost="t",
    )
)
class GatedDeltaAttention(DeltaRuleAttention):
    """The delta rule on a state that decays first, by one number for each head:

        S' = exp(g_t) S_{t−1},   S_t = S' + β_t k_t (v_t − S'ᵀ k_t)ᵀ
        out_t = norm(S_tᵀ q_t / √c) ⊙ SiLU(W x_t)

    with g = −exp(A) softplus(W x + b) and β = σ(W x). Short convolutions and SiLU come before
    q, k and v; then q and k are made unit vectors.

    Args:
        kernel_size: K, the tokens that a convolution mixes, oneself included.
    """

    def __init__(self, *, kernel_size: int = 4, **options: Any) -> None:
        super().__init__(**options)
        width = self.heads * self.head_dim
        self.query_convolution = ShortConvolution(width, kernel_size)
        self.key_convolution = ShortConvolution(width, kernel_size)
        self.value_convolution = ShortConvolution(width, kernel_size)
        self.rate = nn.Linear(self.dim, self.heads, bias=False)
        self.decay: nn.Module = nn.Linear(self.dim, self.heads, bias=False)
        self.log_speed = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.step_bias = nn.Parameter(step_sizes(self.heads))
        self.gate: nn.Module = nn.Linear(self.dim, width, bias=False)
        self.norm = nn.RMSNorm(self.head_dim, eps=1e-6)

    @property
    def sizes(self) -> dict[str, int]:
        return super().sizes | {"K": self.query_convolution.kernel_size}

    def steps(self, x: Tensor, mix: Mix) -> Steps:
        q = silu(self.heads_of(mix(self.query_convolution, self.query(x))))
        k = silu(self.heads_of(mix(self.key_convolution, self.key(x))))
        v = silu(self.heads_of(mix(self.value_convolution, self.value(x))))
        q, k = unit(q) * self.head_dim**-0.5, unit(k)
        beta = upcast(self.rate(x)).sigmoid().transpose(1, 2)[..., None]
        return Steps(q, beta * k, v, erase=k, decay=self.log_decay(x), rate=beta)

    def log_decay(self, x: Tensor) -> Tensor:
        """g, [b h t 1]."""
        steps = softplus(upcast(self.decay(x)) + self.step_bias)
        return (-self.log_speed.exp() * steps).transpose(1, 2)[..., None]

    def finish(self, attended: Tensor, x: Tensor) -> Tensor:
        gate = silu(self.heads_of(self.gate(x)))
        return self.project_output((self.norm(attended) * gate).to(x.dtype))
