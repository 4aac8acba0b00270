"""Rows without padding between their real tokens, for attention that counts columns."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attention_zoo.attention.sharing import SharedKV
from attention_zoo.caches import Cache, ConvolutionCache, TokenCache
from attention_zoo.masks import Mask, gather_order
from attention_zoo.tensor_checks import is_readable

if TYPE_CHECKING:
    from attention_zoo.attention.base import Attention


@dataclass(frozen=True)
class Unpadding:
    """An order of the columns of each row, in which its real tokens follow one another.

    Padding stands first among the cached tokens and last among the new ones. So the new tokens
    remain the last columns, and the order of cached tokens is that of one pass over them.

    Args:
        mask: over whole rows, in the order of the caller.
        start: number of cached tokens.
        order: [b|1 n], the columns in their order; None where all remain where they are.
        hides_queries: whether a query at padding sees nothing.
    """

    mask: Mask
    start: int = 0
    order: Tensor | None = None
    hides_queries: bool = False

    def arrange(self, x: Tensor) -> Tensor:
        """Return the new tokens [b|1 t …] in the order."""
        if self.order is None:
            return x
        return gather_order(x, self.order[:, self.start :] - self.start, 1)

    def arrange_mask(self) -> Mask:
        """Return the mask over rows in the order.

        Padding at the end is of the sequence of the last real token, not one of its own.
        """
        if self.order is None:
            return self.mask
        key_mask, segment_ids = self.mask.key_mask, self.mask.segment_ids
        assert key_mask is not None
        key_mask = gather_order(key_mask, self.order, 1)
        if segment_ids is not None:
            segment_ids = gather_order(segment_ids, self.order, 1)
            columns = torch.arange(segment_ids.shape[1], device=segment_ids.device)
            number = key_mask[:, self.start :].sum(dim=1, keepdim=True)
            last = (self.start + number - 1).clamp(min=0)
            segment_ids = gather_order(segment_ids, torch.minimum(columns, last), 1)
        return replace(self.mask, key_mask=key_mask, segment_ids=segment_ids)

    def restore(self, x: Tensor, *dims: int) -> Tensor:
        """Return x, whose dims are over the new tokens, in the order of the caller."""
        if self.order is not None:
            inverse = (self.order[:, self.start :] - self.start).argsort(dim=1)
            for dim in dims:
                x = gather_order(
                    x.narrow(dim, x.shape[dim] - inverse.shape[1], inverse.shape[1]), inverse, dim
                )
        return x

    def restore_queries(self, x: Tensor, *dims: int) -> Tensor:
        """Return x [b h q …] in the order of the caller, with zeros for queries at padding."""
        x = self.restore(x, 2, *dims)
        if not self.hides_queries or self.mask.key_mask is None:
            return x
        real = self.mask.key_mask[:, self.start :]
        return x[:, :, x.shape[2] - real.shape[1] :].masked_fill(~real[:, None, :, None], 0.0)


def find_unpadding(
    attention: "Attention", mask: Mask, cache: Cache | None = None, shared: SharedKV | None = None
) -> Unpadding:
    """Find the order in which attention that counts columns meets no padding inside a row."""
    counts = attention.role != "cross" and (attention.counts_columns or mask.window is not None)
    past = shared if attention.reads_kv else cache
    start = 0 if past is None else past.length
    order = find_order(mask, start, decodes=cache is not None) if counts else None
    if shared is not None:
        # Who reads keys and values finds them in the order of the source.
        order = shared.order = shared.order if attention.reads_kv else order
    if isinstance(cache, ConvolutionCache):
        cache = cache.attention
    if isinstance(cache, TokenCache):
        cache.arrange(mask.key_mask if counts else None, order)
    return Unpadding(mask, start, order, hides_queries=counts)


def find_order(mask: Mask, start: int, *, decodes: bool) -> Tensor | None:
    """Find the order of `Unpadding` [b|1 n], or None where no padding is in the way.

    The values of the mask are looked at on a CPU alone: elsewhere they would have to be waited for,
    and the order is always computed.
    """
    real = mask.key_mask
    if real is None or (
        is_readable(real) and real.device.type == "cpu" and not has_gap(real, decodes=decodes)
    ):
        return None
    is_new = torch.arange(real.shape[1], device=real.device) >= start
    return torch.where(real, 1, 2 * is_new).to(torch.uint8).argsort(dim=1, stable=True)


def has_gap(real: Tensor, *, decodes: bool) -> bool:
    """Return whether padding stands between real tokens; in decoding, or after them.

    What is at the end of a row now is inside it later.
    """
    falls = real[:, :-1] & ~real[:, 1:]
    if decodes:
        return bool(falls.any())
    return bool(((falls.cumsum(dim=1) > 0) & real[:, 1:]).any())
