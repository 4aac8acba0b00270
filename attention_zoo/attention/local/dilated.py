"""Dilated sliding-window attention (Beltagy et al. 2020)."""

from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.local.pattern import PatternAttention
from attention_zoo.attention.softmax import QKV, register_softmax
from attention_zoo.caches import Cache, TokenCache
from attention_zoo.errors import check_positive
from attention_zoo.masks import Mask, Visibility, window_span


@register_softmax(
    name="dilated",
    paper="Beltagy et al. 2020, arXiv 2004.05150, §3.1",
    equation="softmax(QKᵀ/√c) V over W keys that are r apart, the query's own among them",
    reference="closed form",
    deviations="one dilation for all heads; the window counts the query itself, and without "
    "causality W // 2 keys before and (W - 1) // 2 after",
    roles=("causal", "global"),
    masks=("causal", "window", "key_mask", "segment_ids"),
    positions=("positions", "embeddings", "heads", "width", "scores"),
    cache="keys and values of the tokens that the window spans",
    cost="t",
)
class DilatedAttention(PatternAttention):
    """Attention to every r-th key within a window that is r times as wide as its keys are many.

    A token sees only tokens whose columns leave the same remainder modulo r. Each such class of
    tokens is a sequence under a sliding window of W keys.

    Args:
        window: W, the number of keys that a query sees, itself included.
        dilation: r, the distance between two of them, in tokens.
    """

    def __init__(self, *, window: int, dilation: int, **options: Any) -> None:
        super().__init__(**options)
        check_positive(window=window, dilation=dilation)
        self.dilation = dilation
        self.spanned_tokens = (window - 1) * dilation + 1
        # Number of keys in the window before a query, and after it.
        self.before, self.after = window_span(window, self.role == "causal")

    def cached_tokens(self, tokens: int) -> int:
        return min(super().cached_tokens(tokens), self.spanned_tokens)

    def create_cache(self) -> Cache:
        return TokenCache(self.spanned_tokens)

    def is_visible(self, query: Any, key: Any, length: Any) -> Any:
        steps = (query - key) // self.dilation
        same_class = (query - key) % self.dilation == 0
        return same_class & (steps <= self.before) & (-steps <= self.after)

    def attend(self, qkv: QKV, visible: Visibility) -> Tensor:
        """Attend within a window over each class of tokens; the batch holds all classes."""
        mask, length = visible.mask, visible.rows.stop
        batch, _, queries, _ = qkv.q.shape
        # The classes of the last tokens: no more than there are queries.
        classes = min(self.dilation, queries)

        def split(x: Tensor, dim: int) -> Tensor:
            return split_classes(x.expand(batch, *x.shape[1:]), dim, self.dilation, classes)

        before, after = self.before, self.after
        if mask.window is not None:
            earlier, later = window_span(mask.window, mask.causal)
            before = min(before, earlier // self.dilation)
            after = min(after, later // self.dilation)
        key_mask = mask.key_mask
        if key_mask is None:
            # It also hides what fills up the shorter classes.
            key_mask = torch.ones(1, length, dtype=torch.bool, device=qkv.q.device)
        q, k, v = (split(x, 2) for x in qkv[:3])
        q_positions, k_positions = split(qkv.q_positions, 1), split(qkv.k_positions, 1)
        class_mask = Mask(
            causal=mask.causal,
            window=before + 1 if mask.causal else before + after + 1,
            key_mask=split(key_mask, 1),
            segment_ids=None if mask.segment_ids is None else split(mask.segment_ids, 1),
        )
        rows = q.shape[2], k.shape[2], -(-length // self.dilation)
        class_visible = Visibility.of_last(class_mask, *rows)
        spans = self.window_spans(QKV(q, k, v, q_positions, k_positions, {}), class_visible)
        attend = super().attend
        attended = torch.cat([attend(*span) for span in spans], dim=2)
        merged = attended.unflatten(0, (batch, classes)).movedim(1, 3).flatten(2, 3)
        return merged[:, :, -queries:]


def split_classes(x: Tensor, dim: int, dilation: int, classes: int) -> Tensor:
    """Split tokens along a dimension by their class: [b … t …] -> [(b r) … t/r …].

    Columns are counted back from the last token, so that it is the last of its class. The last
    `classes` of the r = `dilation` classes are returned. Zeros in front fill up the shorter ones.
    """
    shape = list(x.shape)
    shape[dim] = -shape[dim] % dilation
    filled = torch.cat([x.new_zeros(shape), x], dim=dim)
    parts = filled.unflatten(dim, (-1, dilation)).narrow(dim + 1, dilation - classes, classes)
    return parts.movedim(dim + 1, 1).flatten(0, 1)
