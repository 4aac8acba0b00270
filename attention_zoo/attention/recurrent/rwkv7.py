"""The time mixing of RWKV-7 (Peng et al. 2025)."""

import math
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.base import create_low_rank_linear, register_recurrent
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner, TokenShift
from attention_zoo.attention.recurrent.delta_rule import DeltaRuleAttention
from attention_zoo.attention.recurrent.naive import (
    divide_by_length,
    low_rank_linear,
    outer,
    read_states,
    run_states,
)
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.custom_gradients import unit_vectors
from attention_zoo.errors import check_positive

MIN_LOG_DECAY = -math.exp(-0.5)  # of the strongest decay


@register_recurrent(
    name="rwkv7",
    also_called=("rwkv",),
    paper="Peng et al. 2025, arXiv 2503.14456",
    equation="S ← (diag(w) − (a ⊙ κ) κᵀ) S + k vᵀ;  out = Sᵀ r + (r·(u ⊙ k)) v",
    reference="flash-linear-attention dplr_recurrence",
    deviations="the bonus r·(u ⊙ k) is added before the norm, not after it, so that it is a "
    "weight like the others; the norm has no bias, so that a query that sees nothing gets "
    "zeros; the gate sees the token alone, not the one before it; no value residual from the "
    "first layer, as layers do not know each other; one rank for all projections of low rank",
    cache="one matrix for each head, and the last token",
    search_space={"decay_bias": (-8.0, -3.0)},
)
class RWKV7Attention(DeltaRuleAttention):
    """A delta rule that erases along one key, channel by channel, and adds under another.

        S_t = (diag(w_t) − (a_t ⊙ κ_t) κ_tᵀ) S_{t−1} + k_t v_tᵀ
        out_t = norm(S_tᵀ r_t + (r_t·(u ⊙ k_t)) v_t) ⊙ g_t

    with the decay w = exp(−exp(−½) σ(d)), the in-context learning rate a = σ(…), the removal key κ,
    the unit vector along ξ ⊙ key, and k = key ⊙ (1 + m ⊙ (a − 1)); d, a and g come from projections
    of low rank. The input of each projection except that of g is a mean of the token and the one
    before it, channel by channel.

    Args:
        rank: of the projections to d, a and g.
        decay_bias: of d in the slowest channel at the start; that of the quickest is 6 more.
    """

    decided_options = ("backend",)
    no_decay = ("shift_shares", "removal", "replacement", "bonus", "norm_weight")

    def __init__(self, *, rank: int = 32, decay_bias: float = -5.5, **options: Any) -> None:
        super().__init__(backend="torch", **options)
        check_positive(rank=rank)
        width = self.heads * self.head_dim
        self.shift = TokenShift(self.dim)
        # The share of the token before in the inputs of query, key, value, decay and learning rate.
        self.shift_shares = nn.Parameter(torch.linspace(1, 0, self.dim).repeat(5, 1))
        decay = nn.Linear(rank, width)
        # Some channels forget within a few tokens, and others keep hundreds.
        decay.bias = nn.Parameter(torch.linspace(decay_bias, decay_bias + 6.0, width))
        self.decay = nn.Sequential(nn.Linear(self.dim, rank, bias=False), nn.Tanh(), decay)
        self.rate = create_low_rank_linear(self.dim, rank, width, bias=True)
        self.gate = nn.Sequential(
            nn.Linear(self.dim, rank, bias=False), nn.Sigmoid(), nn.Linear(rank, width, bias=False)
        )
        self.removal = nn.Parameter(torch.full((self.heads, 1, self.head_dim), 0.7))
        self.replacement = nn.Parameter(torch.ones(self.heads, 1, self.head_dim))
        self.bonus = nn.Parameter(torch.full((self.heads, 1, self.head_dim), -0.04))
        self.norm_weight = nn.Parameter(torch.ones(self.heads, 1, self.head_dim))

    def project_steps(self, x: Tensor, positions: Tensor, convolve: ConvolutionRunner) -> Steps:
        change = convolve(self.shift, x) - x
        projections = (self.query, self.key, self.value, self.decay, self.rate)
        q, key, v, decay, rate = (
            self.split_heads(project(x + share * change))
            for project, share in zip(projections, self.shift_shares, strict=True)
        )
        decay, rate = MIN_LOG_DECAY * decay.sigmoid(), rate.sigmoid()
        removed = unit_vectors(self.removal * key)
        k = key * (1.0 + self.replacement * (rate - 1.0))
        # The state is read before it decays, which exp(−g) undoes: it is at most 1.84.
        return Steps(q, k, v, removed * (-decay).exp(), rate * removed, decay)

    def recurrence(self, steps: Steps, state: Tensor | None) -> tuple[Tensor, Tensor]:
        out, state = super().recurrence(steps, state)
        bonus = (steps.q * self.bonus * steps.k).sum(dim=-1, keepdim=True) * steps.v
        return out + bonus, state

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        normal = layer_norm(attended, (self.head_dim,), eps=1e-5 * self.head_dim)
        gate = self.split_heads(self.gate(x))
        return super().project_output(self.norm_weight * normal * gate, x)

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        before = torch.zeros_like(x)
        for b, t in product(*map(range, x.shape[:2])):
            earlier = visible[b, t, :t].nonzero()[:, 0]
            if len(earlier):
                before[b, t] = x[b, earlier[-1]]
        change = before - x
        query_input, key_input, value_input, decay_input, rate_input = (
            x + share * change for share in self.shift_shares
        )
        r = naive.linear_heads(self.query, query_input, self.heads)
        key = naive.linear_heads(self.key, key_input, self.heads)
        v = naive.linear_heads(self.value, value_input, self.heads)
        logits = naive.split_heads(low_rank_linear(self.decay, decay_input, torch.tanh), self.heads)
        w = torch.exp(-math.exp(-1 / 2) * torch.sigmoid(logits))
        a = torch.sigmoid(naive.split_heads(low_rank_linear(self.rate, rate_input), self.heads))
        removal, k = divide_by_length(self.removal * key), key * (1 + self.replacement * (a - 1))
        transitions = torch.diag_embed(w) - outer(a * removal, removal)
        attended = read_states(r, run_states(transitions, k, v, visible))
        bonus = (r * self.bonus * k).sum(dim=-1, keepdim=True) * v
        attended = attended + bonus * visible.diagonal(dim1=1, dim2=2)[:, None, :, None]
        normal = self.norm_weight * naive.layer_norm(attended, epsilon=1e-5 * self.head_dim)
        gate = naive.split_heads(low_rank_linear(self.gate, x, torch.sigmoid), self.heads)
        return naive.linear_output(self.output, normal * gate)
