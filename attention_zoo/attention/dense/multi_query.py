"""Multi-query attention (Shazeer 2019)."""

from typing import Any

from attention_zoo.attention.softmax import SoftmaxAttention, register_softmax


@register_softmax(
    name="multi_query",
    also_called=("mqa",),
    paper="Shazeer 2019, arXiv 1911.02150",
    equation="softmax(Q_i Kᵀ/√c) V",
    reference="closed form",
    cache="keys and values of one head",
)
class MultiQueryAttention(SoftmaxAttention):
    """All query heads share one key/value head, in the projections and in the cache."""

    decided_options = ("kv_heads",)

    def __init__(self, **options: Any) -> None:
        super().__init__(kv_heads=1, **options)
