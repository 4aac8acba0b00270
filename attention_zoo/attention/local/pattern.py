"""Attention by a pattern over sequences, of which a row may hold several, and padding."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attention_zoo.attention.softmax import QKV, SoftmaxAttention
from attention_zoo.masks import Mask, Visibility, find_segment_starts

# Whether a query sees a key, by their indices in a sequence and its length: integers or tensors.
SequencePattern = Callable[[Any, Any, Any], Any]


class Sequences(NamedTuple):
    """For every token of a row, the sequence that it belongs to; [b|1 n] each."""

    starts: Tensor  # the column of its first real token
    lengths: Tensor  # from there to its last real token


class PatternAttention(SoftmaxAttention):
    """Softmax attention whose `is_visible` also works on tensors, elementwise.

    FlexAttention's mask functions are of the same kind.
    """

    def is_visible(self, query: Any, key: Any, length: Any) -> Any:
        """Return a bool for integers, and a tensor of bools for tensors of integers."""
        raise NotImplementedError

    def weights(self, qkv: QKV, visible: Visibility) -> Tensor:
        return super().weights(qkv, self.restrict(qkv, visible))

    def restrict(self, qkv: QKV, visible: Visibility) -> Visibility:
        """Return what is visible by the mechanism's pattern too."""
        return add_pattern(visible, self.is_visible, len(qkv.q), qkv.q.device)


def add_pattern(
    visible: Visibility, pattern: SequencePattern, batch: int, device: torch.device
) -> Visibility:
    """Return what is visible by a pattern over the sequences of the rows too."""
    mask, length = visible.mask, visible.rows.stop
    if mask.key_mask is None and mask.segment_ids is None:
        return replace(visible, pattern=lambda b, i, j: pattern(i, j, length))
    starts, lengths = (x.expand(batch, -1) for x in find_sequences(mask, length, device))
    return replace(
        visible,
        pattern=lambda b, i, j: pattern(i - starts[b, i], j - starts[b, i], lengths[b, i]),
    )


def find_sequences(mask: Mask, length: int, device: torch.device) -> Sequences:
    """Find the sequences of each row: one for each segment, without padding at its ends."""
    columns = torch.arange(length, device=device)[None, :]
    if mask.key_mask is None and mask.segment_ids is None:
        return Sequences(torch.zeros_like(columns), torch.full_like(columns, length))
    is_first = columns == 0
    if mask.segment_ids is not None:
        is_first = find_segment_starts(mask.segment_ids)
    is_last = is_first.roll(-1, dims=1)
    is_real = torch.ones_like(columns, dtype=torch.bool)
    if mask.key_mask is not None:
        is_real = mask.key_mask
    batch = max(len(is_first), len(is_real))
    first = find_previous(is_first, columns).expand(batch, -1)
    last = find_next(is_last, columns).expand(batch, -1)
    starts = find_next(is_real, columns).expand(batch, -1).gather(1, first)
    ends = find_previous(is_real, columns).expand(batch, -1).gather(1, last)
    return Sequences(starts, ends - starts + 1)


def find_previous(flags: Tensor, columns: Tensor) -> Tensor:
    """Find the last true column up to each [b n]; the first column, where there is none."""
    return torch.where(flags, columns, 0).cummax(dim=1).values


def find_next(flags: Tensor, columns: Tensor) -> Tensor:
    """Find the first true column from each on [b n]; the last column, where there is none."""
    last = columns.shape[1] - 1
    return torch.where(flags, columns, last).flip(1).cummin(dim=1).values.flip(1)
