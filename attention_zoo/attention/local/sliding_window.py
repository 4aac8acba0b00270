"""Sliding-window attention (Beltagy et al. 2020, Jiang et al. 2023)."""

from typing import Any

from attention_zoo.attention.local.window import WindowAttention
from attention_zoo.caches import Cache, TokenCache
from attention_zoo.errors import UserError
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="sliding_window",
        paper="Beltagy et al. 2020, arXiv 2004.05150, §3.1; Jiang et al. 2023, arXiv 2310.06825",
        equation="softmax(QKᵀ/√c) V over the W keys up to the query, or around it",
        reference="closed form",
        deviations="the window counts the query itself; without causality W // 2 keys before and "
        "(W - 1) // 2 after",
        roles=("causal", "global"),
        masks=("causal", "window", "key_mask", "segment_ids"),
        positions=("positions", "embeddings", "heads", "width", "scores", "content"),
        cache="keys and values of the last W tokens",
        cost="t",
    )
)
class SlidingWindowAttention(WindowAttention):
    """Attention to W neighbouring keys. Work and memory grow with length × W, not length².

    Args:
        window: W, the number of keys that a query sees, itself included.
    """

    window: int

    def __init__(self, *, window: int, **options: Any) -> None:
        super().__init__(**options)
        if window < 1:
            raise UserError(f"window must be at least 1 (the query itself), got {window}.")
        self.window = window

    def create_cache(self) -> Cache:
        return TokenCache(self.window)

    def decode_state(self, tokens: int) -> int:
        return super().decode_state(min(tokens, self.window))
