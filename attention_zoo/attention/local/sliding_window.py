"""Sliding-window attention (Beltagy et al. 2020, Jiang et al. 2023)."""

from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.softmax import QKV, SoftmaxAttention, register_softmax
from attention_zoo.backends import BACKENDS
from attention_zoo.caches import Cache, TokenCache
from attention_zoo.errors import check_positive
from attention_zoo.masks import Columns, Visibility, window_span

MIN_BLOCK = 64  # queries; smaller blocks cost more in calls than they save in work


class WindowAttention(SoftmaxAttention):
    """Softmax attention under masks that have a window, with work and memory of length × window."""

    # Number of tokens that the window spans.
    cached_tokens: int

    def create_cache(self) -> Cache:
        return TokenCache(self.cached_tokens)

    def decode_state(self, tokens: int) -> int:
        return super().decode_state(min(tokens, self.cached_tokens))

    def attend(self, qkv: QKV, visible: Visibility) -> Tensor:
        # An encoding's bias on scores is computed for one block of queries at a time.
        biased = {"scores", "content"} & set(self.position.card.acts)
        if BACKENDS[self.backend].sparse and not biased:
            return super().attend(qkv, visible)
        mask, queries, keys = visible.mask, visible.rows, visible.columns
        assert mask.window is not None
        before, after = window_span(mask.window, mask.causal)
        block = max(mask.window, MIN_BLOCK)
        outputs = []
        # Counted, as torch.compile makes constants of a range's ends, but not of a length's blocks.
        for index in range(-(-qkv.q.shape[2] // block)):
            start = queries.start + index * block
            rows = Columns(start, min(start + block, queries.stop))
            first, stop = max(rows.start - before, keys.start), min(rows.stop + after, keys.stop)
            columns = Columns(first, stop)
            part = slice_qkv(
                qkv,
                slice(rows.start - queries.start, rows.stop - queries.start),
                slice(columns.start - keys.start, columns.stop - keys.start),
            )
            outputs.append(super().attend(part, Visibility(mask=mask, rows=rows, columns=columns)))
        return torch.cat(outputs, dim=2)


def slice_qkv(qkv: QKV, queries: slice, keys: slice) -> QKV:
    """Return some of the queries, and some of the keys with their values and features."""
    # torch.compile makes constants of the ends of a slice that a comprehension captures.
    start, stop = keys.start, keys.stop
    return QKV(
        qkv.q[:, :, queries],
        qkv.k[:, :, keys],
        qkv.v[:, :, keys],
        qkv.q_positions[:, queries],
        qkv.k_positions[:, keys],
        {name: feature[..., start:stop, :] for name, feature in qkv.features.items()},
    )


@register_softmax(
    name="sliding_window",
    counts_padding=True,
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
class SlidingWindowAttention(WindowAttention):
    """Attention to W neighbouring keys. Work and memory grow with length × W, not length².

    Args:
        window: W, the number of keys that a query sees, itself included.
    """

    def __init__(self, *, window: int, **options: Any) -> None:
        super().__init__(**options)
        check_positive(window=window)
        self.window = self.cached_tokens = window
