"""Attention with capped scores (Gemma 2 2024)."""

from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.softmax import ExplicitScoresAttention, register_softmax
from attention_zoo.errors import UserError


@register_softmax(
    name="soft_capped",
    also_called=("softcap",),
    paper="Gemma Team 2024, arXiv 2408.00118, §2",
    equation="softmax(cap·tanh(QKᵀ/(√c·cap))) V",
    reference="transformers Gemma2Attention",
    deviations="a bias of the position is added behind the cap: the cap is for contents",
    search_space={"cap": (15.0, 30.0)},
)
class SoftCappedAttention(ExplicitScoresAttention):
    """Scaled scores are bounded by ±cap, s ← cap·tanh(s/cap), before they are masked.

    Args:
        cap: the bound of the scores.
    """

    def __init__(self, *, cap: float = 50.0, **options: Any) -> None:
        super().__init__(**options)
        if cap <= 0.0:
            raise UserError(f"cap must be above 0, got {cap}.")
        self.cap = cap

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return self.cap * torch.tanh(super().scores(q, k) / self.cap)

    def naive_scores(self, head: int, query: Tensor, keys: Tensor) -> Tensor:
        return self.cap * torch.tanh(super().naive_scores(head, query, keys) / self.cap)
