"""Talking-heads attention (Shazeer et al. 2020)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.attention.dense.definition import weights_by_definition
from attention_zoo.attention.explicit_scores import ExplicitScoresAttention
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="talking_heads",
        paper="Shazeer et al. 2020, arXiv 2003.02436",
        equation="W_i V_i, W = P_w softmax(P_l QKᵀ/√c), P_l and P_w over the heads",
        reference="closed form",
        deviations="as many heads of scores, of weights and of values; the mixes start as the "
        "identity, which is multi-head attention; a bias of the position is added between the mix "
        "of the scores and the softmax",
        roles=("causal", "global", "cross"),
        masks=("causal", "window", "key_mask", "segment_ids", "query_segment_ids"),
        positions=("positions", "embeddings", "heads", "width", "scores", "content"),
        cache="keys and values",
        decode_state="2·t·g·c",
        weights="signed",
    )
)
class TalkingHeadsAttention(ExplicitScoresAttention):
    """Heads are mixed before the softmax, and again behind it:

        W_i = Σ_j P_w[j, i] softmax(Σ_m P_l[m, j] Q_m K_mᵀ/√c),   head_i = W_i V_i

    Scores are masked once they are mixed. The weights of a query may be negative and sum to
    anything.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.score_mix = nn.Parameter(torch.eye(self.heads))
        self.weight_mix = nn.Parameter(torch.eye(self.heads))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return mixed(super().scores(q, k), self.score_mix)

    def normalise(self, scores: Tensor, visible: Tensor | None) -> Tensor:
        return mixed(super().normalise(scores, visible), self.weight_mix)

    def naive(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        visible: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        """The paper's equations, head by head. `visible` is [b q k]."""
        heads = self.heads_of(x, context, positions, None)
        groups = [h * self.kv_heads // self.heads for h in range(self.heads)]
        apart = [
            heads.q[:, h] @ heads.k[:, group].transpose(-2, -1) / math.sqrt(self.head_dim)
            for h, group in enumerate(groups)
        ]
        scores = [sum(p * s for p, s in zip(mix, apart, strict=True)) for mix in self.score_mix.T]
        bias = self.score_bias(heads, visible[:, None])
        joined = torch.stack(scores, dim=1)
        weights = weights_by_definition(joined if bias is None else joined + bias, visible)
        out = [
            sum(p * weights[:, j] for j, p in enumerate(mix)) @ heads.v[:, group]
            for mix, group in zip(self.weight_mix.T, groups, strict=True)
        ]
        return self.finish(torch.stack(out, dim=1), x)


def mixed(maps: Tensor, mix: Tensor) -> Tensor:
    """Σ_m mix[m, i] maps_m for maps [b h q k] and a mix [h h]."""
    return torch.einsum("b m q k, m i -> b i q k", maps, mix)
