"""Sliding-window attention (Beltagy et al. 2020, Jiang et al. 2023)."""

from typing import Any

from attention_zoo.attention.softmax import SoftmaxAttention, register_softmax


@register_softmax(
    name="sliding_window",
    also_called=("swa", "local"),
    paper="Beltagy et al. 2020, arXiv 2004.05150, §3.1; Jiang et al. 2023, arXiv 2310.06825",
    equation="softmax(QKᵀ/√c) V over the W keys up to the query, or around it",
    reference="closed form",
    deviations="the window counts the query itself; without causality W // 2 keys before and (W - "
    "1) // 2 after",
    roles=("causal", "global"),
    masks=("causal", "window", "key_mask", "segment_ids"),
    positions=("positions", "embeddings", "heads", "width", "scores", "content"),
    cache="keys and values of the last W tokens",
    cost="t",
)
class SlidingWindowAttention(SoftmaxAttention):
    """Attention to W neighbouring keys. Work and memory grow with length × W, not length².

    Args:
        window: W, the number of keys that a query sees, itself included.
    """

    def __init__(self, *, window: int, **options: Any) -> None:
        super().__init__(window=window, **options)
