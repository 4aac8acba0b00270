"""Sequences within rows, and the pattern of an attention over them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attention_zoo.attention.softmax import SoftmaxAttention
from attention_zoo.masks import Mask, Pattern, Visibility

# Of a query's and a key's place in a sequence, and of its length; of integers or tensors.
SequencePattern = Callable[[Any, Any, Any], Any]


class Sequences(NamedTuple):
    """Of every token of a row, by the sequence that it belongs to; [b|1 n] each."""

    starts: Tensor  # the column of its first real token
    lengths: Tensor  # from there to its last real token


def sequences(mask: Mask, length: int, device: torch.device) -> Sequences:
    """Where the sequences of each row stand: one for each segment, without padding at its ends."""
    columns = torch.arange(length, device=device)[None, :]
    if mask.key_mask is None and mask.segment_ids is None:
        return Sequences(torch.zeros_like(columns), torch.full_like(columns, length))
    begins, ends = columns == 0, columns == length - 1
    if mask.segment_ids is not None:
        changes = mask.segment_ids[:, 1:] != mask.segment_ids[:, :-1]
        begins = torch.cat([begins[:, :1].expand(len(changes), 1), changes], dim=1)
        ends = torch.cat([changes, ends[:, -1:].expand(len(changes), 1)], dim=1)
    real = torch.ones_like(columns, dtype=torch.bool) if mask.key_mask is None else mask.key_mask
    batch = max(len(begins), len(real))
    first = latest(begins, columns).expand(batch, -1)
    final = next_of(ends, columns).expand(batch, -1)
    starts = next_of(real, columns).expand(batch, -1).gather(1, first)
    stops = latest(real, columns).expand(batch, -1).gather(1, final)
    return Sequences(starts, stops - starts + 1)


def latest(marked: Tensor, columns: Tensor) -> Tensor:
    """[b n]: the last marked column up to each; the first one, where there is none."""
    return torch.where(marked, columns, 0).cummax(dim=1).values


def next_of(marked: Tensor, columns: Tensor) -> Tensor:
    """[b n]: the first marked column from each on; the last one, where there is none."""
    last = columns.shape[1] - 1
    return torch.where(marked, columns, last).flip(1).cummin(dim=1).values.flip(1)


class PatternMap(SoftmaxAttention):
    """The attention map of a mechanism whose `is_visible` works on tensors too, elementwise.

    FlexAttention's mask functions are of the same kind.
    """

    def is_visible(self, query: Any, key: Any, length: Any) -> Any:
        """Of integers, a bool; of tensors of them, one of bools."""
        raise NotImplementedError

    def attention_map(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        mask = self.effective_mask(mask, x, context)
        heads = self.heads_of(x, context, positions, None)
        return self.weights(heads, self.pattern(mask, x.shape[1], x.device))

    def pattern(self, mask: Mask, length: int, device: torch.device) -> Tensor:
        """[b|1 1 q k]: who sees whom in whole rows, by the mask and the mechanism."""
        whole, pattern = range(length), placed(self.is_visible, mask, 1, length, device)
        seen = Visibility(mask=mask, rows=whole, columns=whole, pattern=pattern).dense(device)
        assert seen is not None
        return seen


def placed(
    sees: SequencePattern, mask: Mask, batch: int, length: int, device: torch.device
) -> Pattern:
    """What is said of places in a sequence, as said of columns of rows that are so long."""
    if mask.key_mask is None and mask.segment_ids is None:
        return lambda b, i, j: sees(i, j, length)
    starts, lengths = sequences(mask, length, device)
    if len(starts) == 1:
        starts, lengths = starts.expand(batch, -1), lengths.expand(batch, -1)
    return lambda b, i, j: sees(i - starts[b, i], j - starts[b, i], lengths[b, i])
