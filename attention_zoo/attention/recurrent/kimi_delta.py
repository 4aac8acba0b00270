"""Kimi Delta Attention (Kimi Team 2025)."""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import softplus

from attention_zoo.attention.precision import upcast
from attention_zoo.attention.recurrent.delta_attention import narrow
from attention_zoo.attention.recurrent.gated_delta import GatedDeltaAttention
from attention_zoo.attention.recurrent.recurrence import step_sizes
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="kimi_delta",
        paper="Kimi Team 2025, arXiv 2510.26692",
        equation="S ← Diag(exp g) S;  S ← S − β k (kᵀS) + β k vᵀ;  out = Sᵀ q/√c",
        reference="flash-linear-attention naive_recurrent_kda",
        roles=("causal",),
        masks=("causal", "key_mask", "segment_ids"),
        positions=("positions", "embeddings"),
        cache="one matrix for each head, and the tokens that the convolutions look back at",
        decode_state="h·c·c + 3·(K - 1)·h·c",
        weights="signed",
        cost="t",
    )
)
class KimiDeltaAttention(GatedDeltaAttention):
    """Gated delta attention in which every channel of the keys decays by a number of its own:

        S' = Diag(exp g_t) S_{t−1},   S_t = S' + β_t k_t (v_t − S'ᵀ k_t)ᵀ
        out_t = norm(S_tᵀ q_t / √c) ⊙ σ(W x_t + b)

    with g = −exp(A) softplus(W x + b), A of the head. The projections to decays and to gates
    pass through c channels.

    Args:
        kernel_size: K, the tokens that a convolution mixes, oneself included.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        width = self.heads * self.head_dim
        self.decay = narrow(self.dim, self.head_dim, width, bias=False)
        self.step_bias = nn.Parameter(step_sizes(width))
        self.gate = narrow(self.dim, self.head_dim, width, bias=True)
        self.norm = nn.RMSNorm(self.head_dim, eps=1e-5)

    def log_decay(self, x: Tensor) -> Tensor:
        """g, [b h t c]."""
        steps = self.heads_of(softplus(upcast(self.decay(x)) + self.step_bias))
        return -self.log_speed.exp()[:, None, None] * steps

    def finish(self, attended: Tensor, x: Tensor) -> Tensor:
        gate = self.heads_of(self.gate(x)).sigmoid()
        return self.project_output((self.norm(attended) * gate).to(x.dtype))
