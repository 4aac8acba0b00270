"""The gated linear recurrence of HGRN2 (Qin et al. 2024)."""

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, silu

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.base import register_recurrent
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.attention.recurrent.decayed import DecayedAttention
from attention_zoo.attention.recurrent.naive import read_states, run_states
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.custom_gradients import apply_rms_norm
from attention_zoo.precision import upcast


@register_recurrent(
    name="hgrn2",
    paper="Qin et al. 2024, arXiv 2404.07904",
    equation="S_t = diag(f_t) S_{t−1} + (1 − f_t)ᵀv_t, out_t = q_t S_t, f_t = β + (1 − β) σ(x_t W)",
    reference="flash-linear-attention naive_recurrent_gla",
    deviations="the bounds β of a layer are its own parameters, not sums of a softmax over "
    "layers, as layers do not know each other; they start at l/(l + 1) in the layer l; no "
    "encoding on heads, as their channels decay differently",
    cache="the state",
)
class HGRN2Attention(DecayedAttention):
    """A gated linear recurrence whose keys are what its forget gates leave free.

        S_t = diag(f_t) S_{t−1} + (1 − f_t)ᵀ v_t,   out_t = norm(q_t S_t) W_O
        f_t = β + (1 − β) σ(x_t W_f),   q_t = swish(x_t W_q)

    with one norm for all heads. The lower bounds β of the gates, one for each channel, are learned,
    and 0 in the first layer: later layers forget more slowly.
    """

    no_decay = ("bound",)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.gate
        width = self.heads * self.head_dim
        self.bound = (
            nn.Parameter(torch.full((width,), math.log(self.layer))) if self.layer else None
        )
        self.norm = nn.RMSNorm(width, eps=1e-5)

    def project_steps(self, x: Tensor, positions: Tensor, convolve: ConvolutionRunner) -> Steps:
        q = silu(self.split_heads(self.query(x)))
        v = self.split_heads(self.value(x))
        # The logits of the forget gates take the place of keys.
        logits = upcast(self.key(x))
        decay, k = logsigmoid(logits), (-logits).sigmoid()
        if self.bound is not None:
            free = logsigmoid(-upcast(self.bound))
            decay, k = torch.logaddexp(logsigmoid(upcast(self.bound)), free + decay), free.exp() * k
        return Steps(q, self.split_heads(k), v, decay=self.split_heads(decay))

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        y = apply_rms_norm(self.norm, rearrange(attended, "b h t c -> b t (h c)"))
        return self.output(y.to(x.dtype))

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        q, logits, v = naive.linear_qkv(self, x)
        forget = torch.sigmoid(logits)
        if self.bound is not None:
            bound = torch.sigmoid(self.bound).view(self.heads, 1, self.head_dim)
            forget = bound + (1 - bound) * forget
        states = run_states(torch.diag_embed(forget), 1 - forget, v, visible)
        y = torch.cat([*read_states(silu(q), states).unbind(dim=1)], dim=-1)
        return naive.linear(self.output, naive.rms_norm(y, self.norm.weight, epsilon=1e-5))
