"""Explicit sparse attention (Zhao et al. 2019)."""

from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.softmax import ExplicitScoresAttention, register_softmax
from attention_zoo.backends.reference import masked_softmax
from attention_zoo.errors import check_positive


@register_softmax(
    name="top_k",
    paper="Zhao et al. 2019, arXiv 1912.11637",
    equation="softmax over the k highest of the visible scores",
    reference="x-transformers Attend with sparse_topk",
    deviations="of keys that tie at the k-th place only as many as fit; the paper keeps all",
    chooses="keys",
)
class TopKAttention(ExplicitScoresAttention):
    """Softmax over the k visible keys that score highest with a query.

    A query that sees fewer keys attends to all of them. The other keys get neither weight nor
    gradient.

    Args:
        top_k: k, in keys.
    """

    def __init__(self, *, top_k: int = 8, **options: Any) -> None:
        super().__init__(**options)
        check_positive(top_k=top_k)
        self.top_k = top_k

    def normalise(self, scores: Tensor, visible: Tensor | None) -> Tensor:
        candidates = scores.detach()
        if visible is not None:
            candidates = candidates.masked_fill(~visible, float("-inf"))
        best = candidates.topk(min(self.top_k, scores.shape[-1]), dim=-1).indices
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
        return masked_softmax(scores, chosen if visible is None else chosen & visible)

    def naive_weights(self, head: int, scores: Tensor) -> Tensor:
        ranks = (scores[:, None] < scores[None, :]).sum(dim=1)
        chosen = (ranks < self.top_k).nonzero()[:, 0]
        return torch.zeros_like(scores).index_put((chosen,), scores[chosen].softmax(dim=0))
