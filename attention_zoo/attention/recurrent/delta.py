"""DeltaNet (Schlag et al. 2021, Yang et al. 2024)."""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import silu

from attention_zoo.attention.precision import upcast
from attention_zoo.attention.recurrent.delta_attention import (
    DeltaRuleAttention,
    Mix,
    unit,
)
from attention_zoo.attention.recurrent.delta_rule import Steps
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="delta",
        paper="Schlag et al. 2021, arXiv 2102.11174, §4; Yang et al. 2024, arXiv 2406.06484, §2.2",
        equation="S ← S − β k (kᵀS) + β k vᵀ;  out = Sᵀ q/√c",
        reference="flash-linear-attention delta_rule_recurrence",
        deviations="as in Yang et al., q and k are unit vectors after SiLU, and each head's RMS "
        "norm comes last; without their short convolutions, which gated_delta has",
        roles=("causal",),
        masks=("causal", "key_mask", "segment_ids"),
        positions=("positions", "embeddings"),
        cache="one matrix for each head",
        decode_state="h·c·c",
        weights="signed",
        cost="t",
    )
)
class DeltaAttention(DeltaRuleAttention):
    """A matrix that remembers a value under each key; what a key held before is taken out first:

        S_t = (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ,   out_t = norm(S_tᵀ q_t / √c)

    with β = σ(W x), and q and k of length 1.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rate = nn.Linear(self.dim, self.heads)
        self.norm = nn.RMSNorm(self.head_dim, eps=1e-5)

    def steps(self, x: Tensor, mix: Mix) -> Steps:
        q = unit(silu(self.heads_of(self.query(x))))
        k = unit(silu(self.heads_of(self.key(x))))
        v = self.heads_of(self.value(x))
        beta = upcast(self.rate(x)).sigmoid().transpose(1, 2)[..., None]
        return Steps(q * self.head_dim**-0.5, beta * k, v, erase=k, rate=beta)

    def finish(self, attended: Tensor, x: Tensor) -> Tensor:
        return self.project_output(self.norm(attended).to(x.dtype))
