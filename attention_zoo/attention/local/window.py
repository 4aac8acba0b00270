"""Attention to neighbouring keys: a block of queries at a time, with the slice that it can see."""

import torch
from torch import Tensor

from attention_zoo.attention.softmax import Heads, SoftmaxAttention, seen_by
from attention_zoo.backends import BACKENDS
from attention_zoo.masks import Mask, Visibility, window_span

MIN_BLOCK = 64  # queries; smaller blocks cost more in calls than they save in work


class WindowAttention(SoftmaxAttention):
    """Softmax attention under masks that have a window.

    Work and memory grow with length × window, not length².
    """

    def attend_window(self, heads: Heads, mask: Mask, last: int) -> Tensor:
        """As `SoftmaxAttention.attend`: [b h q c]."""
        # What an encoding adds to scores is made for the slices only.
        biased = {"scores", "content"} & set(self.position.card.acts)
        if BACKENDS[self.backend].sparse and not biased:
            return self.attend_visible(heads, seen_by(heads, mask, last))
        q, k, v, q_positions, k_positions, more = heads
        queries, keys = q.shape[2], k.shape[2]
        first_query, first_key = last - queries, last - keys
        assert mask.window is not None
        before, after = window_span(mask.window, mask.causal)
        block = max(mask.window, MIN_BLOCK)
        outputs = []
        for start in range(first_query, last, block):
            rows = range(start, min(start + block, last))
            columns = range(max(rows.start - before, first_key), min(rows.stop + after, last))
            own = slice(rows.start - first_query, rows.stop - first_query)
            seen = slice(columns.start - first_key, columns.stop - first_key)
            near = Heads(
                q[:, :, own],
                k[:, :, seen],
                v[:, :, seen],
                q_positions[:, own],
                k_positions[:, seen],
                {name: part[..., seen, :] for name, part in more.items()},
            )
            visible = Visibility(mask=mask, rows=rows, columns=columns)
            outputs.append(self.attend_visible(near, visible))
        return torch.cat(outputs, dim=2)
