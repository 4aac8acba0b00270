"""Rows without padding, for mechanisms that count tokens, in blocks for instance.

The real tokens of a row are moved to its front. Then the keys that a query of causal attention sees
are a range: from the first token of its own sequence to itself. So a padded row gives what its real
tokens give alone, and packed sequences give what they give apart.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from attention_zoo.masks import Mask, count_real_tokens


class Unpadding(NamedTuple):
    """Where the keys of each row are moved to, and which of them each query sees there."""

    # [b k], the column of each moved key, real ones first; None where all keys stay.
    order: Tensor | None
    # The first and the last moved key that a query sees: [b|1 q], or [1 1] for a `first` that all
    # queries share. If a query sees nothing, the last is before the first. A query that is padding
    # sees up to the last real key before it.
    first: Tensor
    last: Tensor

    def unpad(self, x: Tensor) -> Tensor:
        """Move the keys of x [b g k c] to the front."""
        if self.order is None:
            return x.contiguous()
        return x.gather(2, self.order[:, None, :, None].expand_as(x))

    def pad(self, weights: Tensor) -> Tensor:
        """Move weights [b h q k] of moved keys back to the columns of the keys."""
        if self.order is None:
            return weights
        return weights.gather(3, self.order.argsort(dim=1)[:, None, None].expand_as(weights))


def find_unpadding(mask: Mask, queries: int, keys: int, device: torch.device) -> Unpadding:
    """Find the unpadding for a causal mask without a window; the queries are the last keys."""
    assert mask.causal and mask.window is None
    order = None
    if mask.key_mask is not None:
        order = mask.key_mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    counts, first = count_real_tokens(mask, keys, device)
    if mask.segment_ids is not None:
        first = first[:, keys - queries :]
    return Unpadding(order, first, counts[:, keys - queries :] - 1)
