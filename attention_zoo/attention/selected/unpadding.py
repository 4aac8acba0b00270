"""Real tokens side by side: for mechanisms that count tokens, in blocks for instance.

Without padding between them, the keys that a query of causal attention sees are a range: from the
first of its own sequence to itself. So a row that is padded gives what its real tokens give alone,
and packed sequences give what they give apart.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from attention_zoo.masks import Mask


class Compaction(NamedTuple):
    """Where the keys of each row go, and which of them each query sees there."""

    # [b k], the column of each packed key, real ones first; None where they stay in place.
    order: Tensor | None
    # The first and the last packed key that a query sees. [b|1 q], and [1 1] for a `first` that all
    # share. Of a query that sees nothing, the last is before the first; of one that is padding
    # itself, it is the last real one before.
    first: Tensor
    last: Tensor

    def pack(self, x: Tensor) -> Tensor:
        """[b g k c], in columns -> packed."""
        if self.order is None:
            return x.contiguous()
        return x.gather(2, self.order[:, None, :, None].expand_as(x))

    def unpack(self, weights: Tensor) -> Tensor:
        """[b h q k], over packed keys -> over columns."""
        if self.order is None:
            return weights
        return weights.gather(3, self.order.argsort(dim=1)[:, None, None].expand_as(weights))

    def seen(self, queries: slice) -> tuple[Tensor, Tensor]:
        """`first` and `last` of some queries."""
        first = self.first if self.first.shape[1] == 1 else self.first[:, queries]
        return first, self.last[:, queries]


def compaction(mask: Mask, queries: int, keys: int, device: torch.device) -> Compaction:
    """Of a causal mask, with padding and segments but no window; the queries are the last keys."""
    assert mask.causal and mask.window is None
    place = torch.arange(keys, device=device)[None, :]
    order, before, last = None, place, place
    if mask.key_mask is not None:
        order = mask.key_mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
        last = mask.key_mask.cumsum(dim=1) - 1
        before = last + 1 - mask.key_mask.long()
    first = torch.zeros_like(place[:, :1])
    if mask.segment_ids is not None:
        starts = torch.ones_like(mask.segment_ids, dtype=torch.bool)
        starts[:, 1:] = mask.segment_ids[:, 1:] != mask.segment_ids[:, :-1]
        first = torch.where(starts, before, 0).cummax(dim=1).values[:, keys - queries :]
    return Compaction(order, first, last[:, keys - queries :])
