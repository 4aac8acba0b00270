"""Which keys a query may attend to, described once as predicates, and rendered by each backend."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import reduce
from operator import and_

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_zoo.errors import UserError, check_positive, short_repr
from attention_zoo.tensor_checks import check_integers, check_key_mask, is_readable

# Whether a query may attend to a key, elementwise: of row b of the batch, and columns i and j.
Predicate = Callable[[Tensor, Tensor, Tensor], Tensor]
TENSOR_FIELDS = ("key_mask", "segment_ids", "query_segment_ids")


@dataclass(frozen=True)
class Columns:
    """The columns of a row from `start` up to `stop`, without `stop` itself.

    A range would say the same, but torch.compile makes constants of its ends, and so compiles anew
    for every length.
    """

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def select(self, part: slice) -> "Columns":
        """Return the columns of a part of these, which `part` counts from `start`."""
        return Columns(self.start + part.start, self.start + part.stop)


@dataclass(frozen=True, kw_only=True)
class Mask:
    """Which keys a query may attend to: the intersection of all fields. True = may attend.

    The last query is aligned with the last key: with q queries and k keys, query i has the column
    k - q + i. So decoding with a cache needs no case of its own.

    Args:
        causal: a query sees no key after its own column.
        window: a query sees W keys, itself included. Causal: the W - 1 keys before it and itself;
            otherwise W // 2 keys before it and (W - 1) // 2 after it. Attention counts real keys
            only, wherever padding stands, and a query at padding then sees nothing. On a CPU rows
            without padding between real tokens cost nothing more; elsewhere, where the values would
            have to be waited for, every row with a key_mask is put in order.
        key_mask: [b k] bool, True at real keys, False at padding.
        segment_ids: [b k] number of the packed sequence of each key; attention stays within one.
            Each sequence is contiguous.
        query_segment_ids: [b q] the same for the queries, where they are not the last of the keys
            (cross-attention).

    Raises:
        UserError: a window below 1, a tensor of another type or shape, ids of a sequence that is
            not contiguous (looked for on a CPU), or query_segment_ids without segment_ids.
    """

    causal: bool = False
    window: int | None = None
    key_mask: Tensor | None = None
    segment_ids: Tensor | None = None
    query_segment_ids: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.causal, bool):
            raise UserError(
                f"a mask's causal must be True or False, got {short_repr(self.causal)}."
            )
        if self.window is not None:
            check_positive(window=self.window)
        if self.query_segment_ids is not None and self.segment_ids is None:
            raise UserError("query_segment_ids are compared with segment_ids: give both.")
        if self.key_mask is not None:
            check_key_mask(self.key_mask)
        for name in ("segment_ids", "query_segment_ids"):
            ids = getattr(self, name)
            if ids is not None:
                check_integers(ids, f"a mask's {name}", "[b t]")
        rows = {name: len(part) for name, part in self.tensors.items()}
        if len(set(rows.values()) - {1}) > 1:
            sizes = ", ".join(f"{name}: {count}" for name, count in rows.items())
            raise UserError(f"all parts of a mask must have as many rows, or one; got {sizes}.")
        if self.segment_ids is not None:
            check_contiguous(self.segment_ids, self.key_mask)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return the fields that are set and differ from token to token."""
        parts = {name: getattr(self, name) for name in TENSOR_FIELDS}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the fields that are set."""
        values = ((name, getattr(self, name)) for name in FIELDS)
        return tuple(name for name, value in values if value is not None and value is not False)

    @property
    def batch(self) -> int | None:
        """Return how many rows of the batch differ; None where all rows are alike."""
        sizes = {len(part) for part in self.tensors.values()}
        # One row stands for all of a batch, though the batch may be empty.
        return max(sizes - {1}, default=1) if sizes else None

    def check_shape(self, *, batch: int, queries: int, keys: int) -> None:
        """Refuse a mask that has not a row for each sequence, or one for all, of these lengths."""
        lengths = {"key_mask": keys, "segment_ids": keys, "query_segment_ids": queries}
        for name, part in self.tensors.items():
            if part.shape[1] != lengths[name]:
                raise UserError(
                    f"the mask's {name} must have a column for each of {lengths[name]} tokens, "
                    f"got {part.shape[1]}."
                )
            if len(part) not in (1, batch):
                raise UserError(
                    f"the mask's {name} must have a row for each of {batch} sequences, or one for "
                    f"all, got {len(part)}."
                )

    def intersect(self, *, causal: bool = False, window: int | None = None) -> "Mask":
        """Return this mask, narrowed to causal or windowed attention."""
        windows = [w for w in (self.window, window) if w is not None]
        narrowed = self.causal or causal, min(windows) if windows else None
        if narrowed == (self.causal, self.window):
            return self
        return replace(self, causal=narrowed[0], window=narrowed[1])

    def predicates(self, batch: int, rows: Columns, columns: Columns) -> Iterator[Predicate]:
        """Yield the predicate of each field that can hide a key from a query.

        A window counts columns: attention has put padding out of the way before. The rows are the
        columns of the queries among the keys: query i of q has k - q + i.
        """
        if self.causal and columns.stop - 1 > rows.start:
            yield lambda b, i, j: j <= i
        if self.window is not None:
            before, after = window_span(self.window, self.causal)
            if rows.stop - 1 - columns.start > before or columns.stop - 1 - rows.start > after:
                yield lambda b, i, j: (i - j <= before) & (j - i <= after)
        if self.key_mask is not None:
            real = self.key_mask.expand(batch, -1)
            yield lambda b, i, j: real[b, j]
        if self.segment_ids is not None:
            of_keys = of_queries = self.segment_ids.expand(batch, -1)
            first_query = 0
            if self.query_segment_ids is not None:
                of_queries = self.query_segment_ids.expand(batch, -1)
                first_query = of_keys.shape[1] - of_queries.shape[1]
            yield lambda b, i, j: of_queries[b, i - first_query] == of_keys[b, j]

    def dense(self, rows: Columns, columns: Columns, *, device: torch.device) -> Tensor | None:
        """Render as a tensor [b|1 1 q|1 k], or None where every query sees every key."""
        return Visibility(mask=self, rows=rows, columns=columns).dense(device)

    def gather(self, queries: Tensor, keys: Tensor, length: int) -> Tensor:
        """Render the mask for blocks of queries and for the keys that were gathered for each.

        Args:
            queries: [b|1 m u], the columns of the queries of m blocks.
            keys: [b|1 m s], the columns of the keys of each block. No query sees a key that is not
                among the `length` columns of the row.
            length: number of columns of a row.

        Returns:
            [b|1 m u s] bool.
        """
        i, j = queries[..., :, None], keys[..., None, :]
        visible = (j >= 0) & (j < length)
        batch = 1 if self.batch is None else self.batch
        b = torch.arange(batch, device=keys.device).view(-1, 1, 1, 1)
        # Columns outside the row have no entry to look up.
        i, j = i.clamp(0, length - 1), j.clamp(0, length - 1)
        for predicate in self.predicates(batch, Columns(0, length), Columns(0, length)):
            visible = visible & predicate(b, i, j)
        return visible.expand(*visible.shape[:-2], queries.shape[-1], -1)


FIELDS = tuple(field.name for field in fields(Mask))


@dataclass(frozen=True, kw_only=True)
class Visibility:
    """Which of some queries see which of some keys, for a backend to render.

    Args:
        mask: over whole rows.
        rows: columns of the queries among the keys.
        columns: columns of the keys.
        pattern: a predicate of the mechanism that must hold as well.
        sinks: number of extra keys before all others, which every query sees.
    """

    mask: Mask
    rows: Columns
    columns: Columns
    pattern: Predicate | None = None
    sinks: int = 0

    @classmethod
    def of_last(cls, mask: Mask, queries: int, keys: int, length: int) -> "Visibility":
        """Describe the last `queries` and the last `keys` of a row of `length` columns."""
        rows, columns = Columns(length - queries, length), Columns(length - keys, length)
        return cls(mask=mask, rows=rows, columns=columns)

    @property
    def is_causal_square(self) -> bool:
        """Return whether it is the lower triangle of a square, and nothing else."""
        rows, columns = self.rows, self.columns
        # A branch, as torch.compile would return a symbol for the comparisons themselves. Lengths
        # come last: cross-attention compares none, and has one graph for equal and unequal ones.
        if self.mask.names != ("causal",):
            return False
        if rows.start != columns.start or rows.stop != columns.stop:
            return False
        return self.pattern is None and not self.sinks

    def predicate(self, batch: int) -> Predicate | None:
        """Return the conjunction of all predicates; None where every query sees every key.

        The sinks are not among its columns.
        """
        parts = [*self.mask.predicates(batch, self.rows, self.columns)]
        if self.pattern is not None:
            parts.append(self.pattern)
        if not parts:
            return None
        return lambda b, i, j: reduce(and_, (part(b, i, j) for part in parts))

    def dense(self, device: torch.device) -> Tensor | None:
        """Render as a tensor [b|1 1 q|1 k], or None where every query sees every key."""
        batch = 1 if self.mask.batch is None else self.mask.batch
        predicate = self.predicate(batch)
        if predicate is None:
            return None
        b = torch.arange(batch, device=device).view(-1, 1, 1)
        i = torch.arange(self.rows.start, self.rows.stop, device=device).view(1, -1, 1)
        j = torch.arange(self.columns.start, self.columns.stop, device=device).view(1, 1, -1)
        visible = predicate(b, i, j)[:, None]
        return pad(visible, (self.sinks, 0), value=True) if self.sinks else visible


@dataclass(frozen=True)
class TokenSpan:
    """The tokens of a row from the column `start` on; the mask is that of the whole row."""

    mask: Mask = Mask()
    start: int = 0

    @property
    def key_mask(self) -> Tensor | None:
        """Return [b t] bool, True at real tokens."""
        mask = self.mask.key_mask
        return None if mask is None else mask[:, self.start :]

    @property
    def segment_ids(self) -> Tensor | None:
        """Return [b t], or [b 1+t] with that of the token before the span, if there is one."""
        segment_ids = self.mask.segment_ids
        return None if segment_ids is None else segment_ids[:, max(self.start - 1, 0) :]

    @property
    def segment_starts(self) -> Tensor | None:
        """Return [b t] bool, True where another segment ends before the token."""
        segment_ids = self.segment_ids
        if segment_ids is None:
            return None
        if self.start == 0:  # No segment ends before a row.
            segment_ids = torch.cat([segment_ids[:, :1], segment_ids], dim=1)
        return find_segment_starts(segment_ids)[:, 1:]


def check_contiguous(segment_ids: Tensor, key_mask: Tensor | None) -> None:
    """Refuse a sequence that goes on after another one: mechanisms read each as one run of tokens.

    Padding belongs to no sequence. Elsewhere than on a CPU the values would have to be waited for.
    """
    if not is_readable(segment_ids) or segment_ids.device.type != "cpu":
        return
    if not (segment_ids[:, 1:] < segment_ids[:, :-1]).any():
        return
    ids, runs = torch.broadcast_tensors(
        segment_ids if key_mask is None else segment_ids.long().masked_fill(~key_mask, -1),
        find_segment_starts(segment_ids).cumsum(dim=1),
    )
    order = ids.argsort(dim=1, stable=True)
    ids, runs = ids.gather(1, order), runs.gather(1, order)
    split = (ids[:, 1:] == ids[:, :-1]) & (runs[:, 1:] != runs[:, :-1])
    if key_mask is not None:
        split &= ids[:, 1:] != -1
    if split.any():
        row, column = split.nonzero()[0].tolist()
        raise UserError(
            f"segment_ids must number contiguous sequences, but in row {row} the sequence "
            f"{ids[row, column]} goes on after another. Give each run of tokens its own number."
        )


def order_real_first(key_mask: Tensor) -> Tensor:
    """Return the columns of each row [b t], those of real tokens first, in their order.

    >>> order_real_first(torch.tensor([[True, False, False, True]]))
    tensor([[0, 3, 1, 2]])
    """
    return key_mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)


def find_segment_starts(segment_ids: Tensor) -> Tensor:
    """Return [b n] bool, True at the first token of each segment, and so at that of the row."""
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    return pad(changes, (1, 0), value=True)[:, : segment_ids.shape[1]]


def count_real_tokens(mask: Mask, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Count the real tokens of a row up to each token, and before the segment of each token.

    Returns:
        [b|1 n], with the token itself, and [b|1 n]; without segments the latter is [1 1].
    """
    counts = torch.arange(1, length + 1, device=device)[None, :]
    before = counts - 1
    if mask.key_mask is not None:
        counts = mask.key_mask.cumsum(dim=1)
        before = counts - mask.key_mask.long()
    if mask.segment_ids is None:
        return counts, counts.new_zeros(1, 1)
    starts = find_segment_starts(mask.segment_ids)
    return counts, torch.where(starts, before, 0).cummax(dim=1).values


def window_span(window: int, causal: bool) -> tuple[int, int]:
    """Return how many keys of a window stand before a query, and how many after it."""
    return (window - 1, 0) if causal else (window // 2, (window - 1) // 2)


def gather_broadcast(x: Tensor, index: Tensor, dim: int) -> Tensor:
    """Return what `torch.take_along_dim` does, for which torch.compile fixes all sizes.

    >>> gather_broadcast(torch.tensor([[5, 6, 7]]), torch.tensor([[0, 2], [1, 1]]), 1)
    tensor([[5, 7],
            [6, 6]])
    """
    dim %= x.ndim
    sizes = [a if b == 1 else b for a, b in zip(x.shape, index.shape, strict=True)]
    x_sizes, index_sizes = sizes.copy(), sizes.copy()
    x_sizes[dim], index_sizes[dim] = x.shape[dim], index.shape[dim]
    return x.expand(x_sizes).gather(dim, index.expand(index_sizes))


def gather_order(x: Tensor, order: Tensor, dim: int) -> Tensor:
    """Gather x [b|1 … n …] along a dimension by an order of its columns [b|1 m].

    >>> gather_order(torch.tensor([[[5, 6, 7]]]), torch.tensor([[2, 0]]), -1)
    tensor([[[7, 5]]])
    """
    shape = [1] * x.ndim
    shape[0], shape[dim] = order.shape
    return gather_broadcast(x, order.view(shape), dim)


def gather_columns(x: Tensor, columns: Tensor) -> Tensor:
    """Gather x [b|1 n] at columns [b|1 m s]: [b|1 m s]. Columns outside the row give its end.

    >>> gather_columns(torch.tensor([[5, 6, 7]]), torch.tensor([[[-1, 1], [2, 3]]]))
    tensor([[[5, 6],
             [7, 7]]])
    """
    batch = max(len(x), len(columns))
    index = columns.clamp(0, x.shape[1] - 1).expand(batch, -1, -1)
    return x.expand(batch, -1).gather(1, index.flatten(1)).view(index.shape)
