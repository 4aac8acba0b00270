"""The time mixing of RWKV-7 (Peng et al. 2025)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from attention_zoo.attention.recurrent.convolution import ShortConvolution
from attention_zoo.attention.recurrent.delta_attention import (
    DeltaRuleAttention,
    Mix,
    narrow,
    unit,
)
from attention_zoo.attention.recurrent.delta_rule import Steps
from attention_zoo.errors import UserError
from attention_zoo.zoo import ATTENTION, AttentionCard

STRONGEST = -math.exp(-0.5)  # log of the strongest decay


@ATTENTION.register(
    AttentionCard(
        name="rwkv7",
        paper="Peng et al. 2025, arXiv 2503.14456",
        equation="S ← (diag(w) − (a ⊙ κ) κᵀ) S + k vᵀ;  out = Sᵀ r + (r·(u ⊙ k)) v",
        reference="flash-linear-attention dplr_recurrence",
        deviations="the bonus r·(u ⊙ k) is added before the norm, not after it, so that it is a "
        "weight like the others; the norm has no bias, so that where nothing is seen there are "
        "zeros; the gate sees the token alone, not the one before it; no value residual from the "
        "first layer, as layers do not know each other; one rank for all projections of low rank",
        roles=("causal",),
        masks=("causal", "key_mask", "segment_ids"),
        positions=("positions", "embeddings"),
        cache="one matrix for each head, and the last token",
        decode_state="h·c·c + d",
        weights="signed",
        cost="t",
    )
)
class RWKV7Attention(DeltaRuleAttention):
    """A delta rule that takes out along one key, and channel by channel, and adds under another:

        S_t = (diag(w_t) − (a_t ⊙ κ_t) κ_tᵀ) S_{t−1} + k_t v_tᵀ
        out_t = norm(S_tᵀ r_t + (r_t·(u ⊙ k_t)) v_t) ⊙ g_t

    with the decay w = exp(−exp(−½) σ(d)), the learning rate in context a = σ(…), the removal key κ,
    which is the unit vector along ξ ⊙ key, and k = key ⊙ (1 + m ⊙ (a − 1)); d, a and g come from
    projections of low rank. What goes into each projection but that of g is a mean of the token and
    the one before it, channel by channel.

    Args:
        rank: of the projections to d, a and g.
    """

    decided_options = ("backend",)

    def __init__(self, *, rank: int = 32, **options: Any) -> None:
        super().__init__(backend="torch", **options)
        if rank < 1:
            raise UserError(f"rank must be at least 1, got {rank}.")
        width = self.heads * self.head_dim
        self.shift = TokenShift(self.dim)
        # How much of the token before goes into query, key, value, decay and learning rate.
        self.earlier = nn.Parameter(torch.linspace(1, 0, self.dim).repeat(5, 1))
        decay = nn.Linear(rank, width)
        # Some channels forget within a few tokens, and some keep hundreds.
        decay.bias = nn.Parameter(torch.linspace(-5.5, 0.5, width))
        self.decay = nn.Sequential(nn.Linear(self.dim, rank, bias=False), nn.Tanh(), decay)
        self.rate = narrow(self.dim, rank, width, bias=True)
        self.gate = nn.Sequential(
            nn.Linear(self.dim, rank, bias=False), nn.Sigmoid(), nn.Linear(rank, width, bias=False)
        )
        self.removal = nn.Parameter(torch.full((self.heads, 1, self.head_dim), 0.7))
        self.replacement = nn.Parameter(torch.ones(self.heads, 1, self.head_dim))
        self.bonus = nn.Parameter(torch.full((self.heads, 1, self.head_dim), -0.04))
        self.norm_weight = nn.Parameter(torch.ones(self.heads, 1, self.head_dim))

    def steps(self, x: Tensor, mix: Mix) -> Steps:
        change = mix(self.shift, x) - x
        mixed = (x + part * change for part in self.earlier)
        projections = (self.query, self.key, self.value, self.decay, self.rate)
        q, key, v, decay, rate = (
            self.heads_of(project(part)) for project, part in zip(projections, mixed, strict=True)
        )
        decay, rate = STRONGEST * decay.sigmoid(), rate.sigmoid()
        removed = unit(self.removal * key)
        k = key * (1.0 + self.replacement * (rate - 1.0))
        # What is taken out is found before the decay: 1/w is at most 1.84.
        return Steps(q, k, v, removed * (-decay).exp(), rate * removed, decay)

    def recur(self, steps: Steps, state: Tensor | None) -> tuple[Tensor, Tensor]:
        out, state = super().recur(steps, state)
        return out + self.own(steps), state

    def naive_reading(self, steps: Steps, visible: Tensor) -> Tensor:
        real = visible.diagonal(dim1=1, dim2=2)[:, None, :, None]
        return super().naive_reading(steps, visible) + self.own(steps) * real

    def own(self, steps: Steps) -> Tensor:
        """What each token reads of its own value besides, [b h t e]."""
        return (steps.q * self.bonus * steps.k).sum(dim=-1, keepdim=True) * steps.v

    def finish(self, attended: Tensor, x: Tensor) -> Tensor:
        width = (self.head_dim,)
        normal = self.norm_weight * layer_norm(attended, width, eps=1e-5 * self.head_dim)
        return self.project_output((normal * self.heads_of(self.gate(x))).to(x.dtype))


class TokenShift(ShortConvolution):
    """The token before, of each: a convolution of two tokens, with the weights 1 and 0."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 2)
        del self.weight
        weight = torch.tensor([1.0, 0.0]).repeat(channels, 1)
        self.register_buffer("weight", weight, persistent=False)
