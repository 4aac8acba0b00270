"""Attention to neighbouring keys: a block of queries at a time, with the keys that it can see."""

import torch
from torch import Tensor

from attention_zoo.attention.softmax import QKV, SoftmaxAttention
from attention_zoo.backends import BACKENDS
from attention_zoo.masks import Visibility, window_span

MIN_BLOCK = 64  # queries; smaller blocks cost more in calls than they save in work


class WindowAttention(SoftmaxAttention):
    """Softmax attention under masks that have a window.

    Work and memory grow with length × window, not length².
    """

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
        for start in range(queries.start, queries.stop, block):
            rows = range(start, min(start + block, queries.stop))
            columns = range(max(rows.start - before, keys.start), min(rows.stop + after, keys.stop))
            part = slice_qkv(
                qkv,
                slice(rows.start - queries.start, rows.stop - queries.start),
                slice(columns.start - keys.start, columns.stop - keys.start),
            )
            outputs.append(super().attend(part, Visibility(mask=mask, rows=rows, columns=columns)))
        return torch.cat(outputs, dim=2)


def slice_qkv(qkv: QKV, queries: slice, keys: slice) -> QKV:
    """Return some of the queries, and some of the keys with their values and features."""
    return QKV(
        qkv.q[:, :, queries],
        qkv.k[:, :, keys],
        qkv.v[:, :, keys],
        qkv.q_positions[:, queries],
        qkv.k_positions[:, keys],
        {name: feature[..., keys, :] for name, feature in qkv.features.items()},
    )
