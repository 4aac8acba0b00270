"""Talking-heads attention (Shazeer et al. 2020)."""

from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.attention import naive
from attention_zoo.attention.softmax import ExplicitScoresAttention, register_softmax


@register_softmax(
    name="talking_heads",
    paper="Shazeer et al. 2020, arXiv 2003.02436",
    equation="W_i V_i, W = P_w softmax(P_l QKᵀ/√c), P_l and P_w over the heads",
    reference="closed form",
    deviations="as many heads of scores, of weights and of values; the mixes start as the "
    "identity, which is multi-head attention; a bias of the position is added between the mix "
    "of the scores and the softmax",
    positions=("positions", "embeddings", "heads", "width", "scores", "content"),
    weights="signed",
)
class TalkingHeadsAttention(ExplicitScoresAttention):
    """Heads are mixed before the softmax, and again after it.

        W_i = Σ_j P_w[j, i] softmax(Σ_m P_l[m, j] Q_m K_mᵀ/√c),   head_i = W_i V_i

    Scores are masked once they are mixed. The weights of a query may be negative and sum to
    anything.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.score_mix = nn.Parameter(torch.eye(self.heads))
        self.weight_mix = nn.Parameter(torch.eye(self.heads))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return mix_heads(super().scores(q, k), self.score_mix)

    def normalise(self, scores: Tensor, visible: Tensor | None) -> Tensor:
        return mix_heads(super().normalise(scores, visible), self.weight_mix)

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Mix all heads with one another, one pair of heads at a time."""
        q, k, v = self.naive_qkv(x, source)
        scores, biases = self.naive_score_matrices(q, k, source, visible, positions)
        mixed = [sum(p * scores[:, m] for m, p in enumerate(mix)) for mix in self.score_mix.T]
        weights = naive.softmax(torch.stack(mixed, dim=1) + biases, visible)
        attended = [
            sum(p * weights[:, j] for j, p in enumerate(mix)) @ v[:, i]
            for i, mix in enumerate(self.weight_mix.T)
        ]
        return self.naive_output(torch.stack(attended, dim=1), x)


def mix_heads(maps: Tensor, mix: Tensor) -> Tensor:
    """Compute Σ_m mix[m, i] maps_m for maps [b h q k] and a mix [h h]."""
    return torch.einsum("b m q k, m i -> b i q k", maps, mix.to(maps.dtype))
