"""Grouped-query attention (Ainslie et al. 2023)."""

from typing import Any

from attention_zoo.attention.softmax import SoftmaxAttention, register_softmax
from attention_zoo.errors import check_positive


@register_softmax(
    name="grouped_query",
    also_called=("gqa",),
    paper="Ainslie et al. 2023, arXiv 2305.13245",
    equation="softmax(Q_i K_jᵀ/√c) V_j, j = ⌊i·g/h⌋",
    reference="transformers LlamaAttention",
    cache="keys and values of g heads",
)
class GroupedQueryAttention(SoftmaxAttention):
    """Neighbouring query heads share a key/value head, so the cache is h / g times smaller.

    Args:
        kv_heads: number g of key/value heads; h makes it multi-head, 1 makes it multi-query
            attention.
    """

    def __init__(self, *, kv_heads: int, **options: Any) -> None:
        check_positive(kv_heads=kv_heads)
        super().__init__(kv_heads=kv_heads, **options)
