"""Dilated sliding-window attention (Beltagy et al. 2020)."""

from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.local.pattern import PatternMap
from attention_zoo.attention.local.window import WindowAttention
from attention_zoo.attention.softmax import Heads
from attention_zoo.caches import Cache, TokenCache
from attention_zoo.errors import UserError
from attention_zoo.masks import Mask, window_span
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="dilated",
        paper="Beltagy et al. 2020, arXiv 2004.05150, §3.1",
        equation="softmax(QKᵀ/√c) V over W keys that are r apart, oneself among them",
        reference="closed form",
        deviations="one dilation for all heads; the window counts oneself, and without causality "
        "W // 2 keys before and (W - 1) // 2 after",
        roles=("causal", "global"),
        masks=("causal", "window", "key_mask", "segment_ids"),
        positions=("positions", "embeddings", "heads", "width", "scores"),
        cache="keys and values of the tokens that the window spans",
        decode_state="2·min(t, (W - 1)·r + 1)·g·c",
        cost="t",
    )
)
class DilatedAttention(PatternMap, WindowAttention):
    """Attention to every r-th key within a window that is r times as wide as its keys are many.

    Tokens whose places leave the same rest by r see one another only: apart, each such class of
    them is a sequence under a sliding window of W keys.

    Args:
        window: W, the number of keys that a query sees, itself included.
        dilation: r, the distance between two of them, in tokens.
    """

    def __init__(self, *, window: int, dilation: int, **options: Any) -> None:
        super().__init__(**options)
        if min(window, dilation) < 1:
            raise UserError(
                "window must be at least 1 (oneself) and dilation at least 1 (no gaps), "
                f"got window={window}, dilation={dilation}."
            )
        self.keys = window
        self.dilation = dilation
        # In steps of the dilation.
        self.window_span = window_span(window, self.role == "causal")

    @property
    def sizes(self) -> dict[str, int]:
        return super().sizes | {"W": self.keys, "r": self.dilation}

    def empty_cache(self) -> Cache:
        return TokenCache((self.keys - 1) * self.dilation + 1)

    def is_visible(self, query: Any, key: Any, length: Any) -> Any:
        before, after = self.window_span
        steps = (query - key) // self.dilation
        return ((query - key) % self.dilation == 0) & (steps <= before) & (-steps <= after)

    def attend(self, heads: Heads, mask: Mask, last: int) -> Tensor:
        """A window over each class of tokens, which stand side by side in the batch."""
        batch, _, queries, _ = heads.q.shape
        # The classes of the last tokens: no more than there are queries.
        classes = min(self.dilation, queries)

        def apart(x: Tensor, dim: int) -> Tensor:
            return by_rest(x.expand(batch, *x.shape[1:]), dim, self.dilation, classes)

        before, after = self.window_span
        if mask.window is not None:
            earlier, later = window_span(mask.window, mask.causal)
            before = min(before, earlier // self.dilation)
            after = min(after, later // self.dilation)
        real = mask.key_mask
        if real is None:
            # What fills up the shorter classes must not be seen either.
            real = torch.ones(1, last, dtype=torch.bool, device=heads.q.device)
        out = self.attend_window(
            Heads(
                q=apart(heads.q, 2),
                k=apart(heads.k, 2),
                v=apart(heads.v, 2),
                q_positions=apart(heads.q_positions, 1),
                k_positions=apart(heads.k_positions, 1),
                more={},
            ),
            Mask(
                causal=mask.causal,
                window=before + 1 if mask.causal else before + after + 1,
                key_mask=apart(real, 1),
                segment_ids=None if mask.segment_ids is None else apart(mask.segment_ids, 1),
            ),
            -(-last // self.dilation),
        )
        together = out.unflatten(0, (batch, classes)).movedim(1, 3).flatten(2, 3)
        return together[:, :, -queries:]


def by_rest(x: Tensor, dim: int, dilation: int, classes: int) -> Tensor:
    """Tokens along a dimension, apart by their places' rest: [b … t …] -> [(b r) … t/r …].

    Places are counted back from the last token, so that it stands last in its class; the last
    `classes` of the r = `dilation` classes are kept. Zeros in front fill up the shorter ones.
    """
    shape = list(x.shape)
    shape[dim] = -shape[dim] % dilation
    filled = torch.cat([x.new_zeros(shape), x], dim=dim)
    parts = filled.unflatten(dim, (-1, dilation)).narrow(dim + 1, dilation - classes, classes)
    return parts.movedim(dim + 1, 1).flatten(0, 1)
