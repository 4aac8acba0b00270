"""Caches: what decoding stores of the tokens it has seen.

Every cache counts its tokens (`length`), and can be reordered along its batch, as beam search
needs; an index that repeats rows also multiplies them.
"""

from collections import defaultdict
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_zoo.errors import UserError
from attention_zoo.masks import gather_order
from attention_zoo.tensor_checks import check_range, describe, is_readable


class Cache(Protocol):
    """The interface of every cache."""

    length: int
    # The id of the attention whose tokens it holds.
    owner: int | None = None

    @property
    def batch(self) -> int | None:
        """Return how many rows it holds; None before the first token."""
        return None

    def reorder(self, index: Tensor) -> None:
        """Keep the rows of the batch at an index [n], in its order."""


class GrowingTensor:
    """A buffer for tokens [b … n c] to which others are added, with room for more behind them.

    So adding a token writes that token alone, where a concatenation copies all, and reordering
    rows moves those that change. Tokens that need a gradient, or whose type or number of rows
    changes, are copied.
    """

    LEAST_ROOM = 64  # tokens

    def __init__(self) -> None:
        self.buffer: Tensor | None = None

    def join(self, tokens: Tensor, part: Tensor) -> Tensor:
        """Return the tokens followed by others, in the buffer."""
        if not can_write(tokens, part):
            return torch.cat([tokens, part], dim=-2)
        count = tokens.shape[-2]
        start, stop = self.find(tokens), count + part.shape[-2]
        if start is None or self.buffer is None or start + stop > self.room:
            room = stop + max(self.LEAST_ROOM, stop // 4)
            self.buffer = tokens.new_empty(*tokens.shape[:-2], room, tokens.shape[-1])
            self.buffer.narrow(-2, 0, count).copy_(tokens)
            start = 0
        self.buffer.narrow(-2, start + count, part.shape[-2]).copy_(part)
        return self.buffer.narrow(-2, start, stop)

    def select_rows(self, tokens: Tensor, index: Tensor) -> Tensor:
        """Return the rows of the tokens at an index [n], in the buffer if n is as before."""
        if len(index) != len(tokens) or not can_write(tokens, tokens) or self.find(tokens) is None:
            return tokens.index_select(0, index)
        rows = torch.arange(len(index), device=index.device)
        if index.device.type == "cpu":  # Elsewhere the rows that change would be waited for.
            rows = rows[index != rows]
        return tokens.index_copy_(0, rows, tokens.index_select(0, index[rows]))

    @property
    def room(self) -> int:
        """Return how many tokens the buffer has room for in all."""
        return 0 if self.buffer is None else self.buffer.shape[-2]

    def find(self, tokens: Tensor) -> int | None:
        """Return where in the buffer the tokens begin; None if they are elsewhere."""
        buffer = self.buffer
        if (
            buffer is None
            or tokens.untyped_storage().data_ptr() != buffer.untyped_storage().data_ptr()
            or tokens.stride() != buffer.stride()
        ):
            return None
        return tokens.storage_offset() // buffer.stride(-2)


class TokenCache(Cache):
    """Named features of every token, such as keys, values and positions, [b … k c] each.

    Args:
        window: how many of the last tokens are kept; default: all. Earlier ones can never be
            attended to again.
    """

    def __init__(self, window: int | None = None) -> None:
        self.window = window
        self.length = 0
        self.tokens: dict[str, Tensor] = {}
        self.growing: dict[str, GrowingTensor] = defaultdict(GrowingTensor)
        # Of the tokens of a pass, see `arrange`.
        self.order: Tensor | None = None
        # [b|1 n], by which the last real tokens were chosen; None for no padding.
        self.key_mask: Tensor | None = None
        # Which of the tokens that `append` returned are kept; None for the last ones.
        self.kept: Tensor | None = None

    def arrange(self, key_mask: Tensor | None, order: Tensor | None) -> None:
        """Take the tokens of a pass in an order, in which `append` also returns the cached ones.

        A window then is one of real tokens. Elsewhere than on a CPU, `key_mask` is not compared
        with that of earlier passes, by which cached tokens were chosen.

        Args:
            key_mask: [b|1 n], True at real tokens, cached ones included; None for no padding.
            order: [b|1 n], of these columns, as in `Unpadding`; None where they remain as they are.
        """
        if self.window is not None:
            check_same_padding(key_mask, self.key_mask, self.length)
            self.key_mask = key_mask
        self.order = order

    def append(self, **new: Tensor) -> dict[str, Tensor]:
        """Add new tokens; return the cached ones followed by the new ones."""
        start, cached = self.length, self.tokens
        self.length += next(iter(new.values())).shape[-2]
        if self.order is not None and self.window is None:
            cached = {
                name: gather_order(x, self.order[:, :start], -2) for name, x in cached.items()
            }
        joined = {
            name: self.growing[name].join(cached[name], part) if name in cached else part
            for name, part in new.items()
        }
        self.kept = self._find_kept(next(iter(joined.values())).shape[-2])
        self.tokens = {name: self.select_kept(part) for name, part in joined.items()}
        return joined

    def _find_kept(self, count: int) -> Tensor | None:
        """Find which of the last `count` tokens in the order are kept, and how they follow.

        Without a window these are all, in the order of their columns. In a window they are the last
        real ones, with padding before them where they are too few.
        """
        if self.order is None:
            return None
        if self.window is None:
            return self.order.argsort(dim=1)
        assert self.key_mask is not None
        real = gather_order(self.key_mask, self.order, 1)[:, self.order.shape[1] - count :]
        last = real.to(torch.uint8).argsort(dim=1, stable=True)
        return last[:, max(count - self.window, 0) :]

    @property
    def batch(self) -> int | None:
        return len(next(iter(self.tokens.values()))) if self.tokens else None

    def select_kept(self, part: Tensor) -> Tensor:
        """Return what the cache keeps of a feature of the tokens that `append` returned."""
        if self.kept is not None:
            return gather_order(part, self.kept, -2)
        if self.window is None or part.shape[-2] <= self.window:
            return part
        last = part[..., part.shape[-2] - self.window :, :]
        # A slice holds on to all of what it is a slice of: to a buffer, or to a long prompt.
        few = 2 * (self.window + GrowingTensor.LEAST_ROOM)
        is_in_small_buffer = any(
            x.find(part) is not None and x.room <= few for x in self.growing.values()
        )
        return last if is_in_small_buffer else last.clone()

    def reorder(self, index: Tensor) -> None:
        check_rows(index, self.batch)
        self.tokens = {
            name: self.growing[name].select_rows(part, index) for name, part in self.tokens.items()
        }
        if self.key_mask is not None and len(self.key_mask) > 1:
            self.key_mask = self.key_mask.index_select(0, index)


class StateCache(Cache):
    """State tensors [b …] of constant size, which every step replaces."""

    def __init__(self) -> None:
        self.length = 0
        self.state: tuple[Tensor, ...] | None = None

    @property
    def batch(self) -> int | None:
        return None if self.state is None else len(self.state[0])

    def reorder(self, index: Tensor) -> None:
        check_rows(index, self.batch)
        if self.state is not None:
            self.state = tuple(part.index_select(0, index) for part in self.state)


class ParallelCache(Cache):
    """The caches of mechanisms that stand side by side in a layer."""

    def __init__(self, branches: list[Cache]) -> None:
        self.branches = branches

    @property
    def length(self) -> int:  # type: ignore[override]
        """Return how many tokens each of the caches has seen."""
        return self.branches[0].length

    def reorder(self, index: Tensor) -> None:
        for cache in self.branches:
            cache.reorder(index)


class ConvolutionCache(Cache):
    """The cache of an attention, None for no cache, and the states [b …] of convolutions by name.

    They are convolutions of what the attention reads, or of what it projects.
    """

    def __init__(self, attention: Cache | None) -> None:
        self.attention = attention
        self.states: dict[str, Tensor] = {}
        self.length = 0

    @property
    def batch(self) -> int | None:
        return len(next(iter(self.states.values()))) if self.states else None

    def reorder(self, index: Tensor) -> None:
        check_rows(index, self.batch)
        if self.attention is not None:
            self.attention.reorder(index)
        self.states = {name: part.index_select(0, index) for name, part in self.states.items()}


class LayeredCache(Cache):
    """The caches of a decoder: those of the sublayers of each layer, None for no cache."""

    def __init__(self, layers: list[list[Cache | None]]) -> None:
        self.layers = layers
        self.length = 0

    def reorder(self, index: Tensor) -> None:
        self.reorder_targets(index)
        self.reorder_contexts(index)

    def reorder_targets(self, index: Tensor) -> None:
        """Keep the rows of self-attention at an index; each goes on with the same context."""
        for attention, *_ in self.layers:
            if attention is not None:
                attention.reorder(index)

    def reorder_contexts(self, index: Tensor) -> None:
        """Keep the rows of cross-attention, one for each context, at an index [m]."""
        for _, *others in self.layers:
            for cache in others:
                if cache is not None:
                    cache.reorder(index)


def can_write(tokens: Tensor, part: Tensor) -> bool:
    """Return whether tokens may be written to a buffer: they are alike and have no gradient."""
    return (
        not torch.is_grad_enabled()
        and is_readable(tokens)
        and is_readable(part)
        and tokens.dtype == part.dtype
        and tokens.device == part.device
        and len(tokens) == len(part)
        # What was made in inference mode is not written to outside of it.
        and tokens.is_inference() == torch.is_inference_mode_enabled()
    )


def check_layered_cache(cache: object) -> None:
    """Refuse what is no cache of a model."""
    if not isinstance(cache, LayeredCache | None):
        raise UserError(
            f"cache must come from new_cache() of the model, got {type(cache).__name__}."
        )


def check_cache(cache: Any, attention: object, batch: int) -> None:
    """Refuse what is no cache, one of another attention, and one of another number of rows."""
    if getattr(cache, "owner", None) != id(attention):
        raise UserError(
            "cache must come from new_cache() of the attention that it is given to, got "
            f"{'that of another' if hasattr(cache, 'owner') else type(cache).__name__}."
        )
    if cache.batch is not None and cache.batch != batch:
        raise UserError(
            f"the cache holds {cache.batch} sequences, got {batch}. Call new_cache() for a new "
            "batch, or cache.reorder(index) to choose rows."
        )


def check_same_padding(key_mask: Tensor | None, cached: Tensor | None, length: int) -> None:
    """Refuse a key_mask that differs from an earlier one at cached columns.

    The values are compared on a CPU alone: elsewhere they would have to be waited for.
    """
    if not all(
        is_readable(x) and x.device.type == "cpu" for x in (key_mask, cached) if x is not None
    ):
        return
    ours, theirs = (fill_key_mask(part, length) for part in (key_mask, cached))
    if (ours != theirs).any():
        raise UserError(
            f"the mask's key_mask must be that of the earlier calls at the {length} cached tokens, "
            "by which the cache chose those of its window. Call new_cache() to hide others."
        )


def fill_key_mask(key_mask: Tensor | None, length: int) -> Tensor:
    """Return a key_mask over `length` columns, with real tokens where it says nothing."""
    if key_mask is None:
        return torch.ones(1, length, dtype=torch.bool)
    return pad(key_mask[:, :length], (0, max(length - key_mask.shape[1], 0)), value=True)


def check_rows(index: Tensor, batch: int | None) -> None:
    """Refuse what is not an index [n] of rows."""
    if not isinstance(index, Tensor) or index.dtype not in (torch.int32, torch.int64):
        raise UserError(f"index must be a tensor [n] of integers, got {describe(index)}.")
    if index.ndim != 1:
        raise UserError(f"index must have the shape [n], got {list(index.shape)}.")
    if batch is not None:
        check_range(index, "index", batch)
