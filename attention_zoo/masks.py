"""Who may attend to whom, described once, as data; each backend renders it its own way."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_zoo.errors import UserError

# Whether a query sees a key: of a row of the batch and of their columns, elementwise.
Pattern = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Mask:
    """Which keys a query may attend to: the intersection of all that is set. True = may attend.

    The last query is aligned with the last key: with q queries and k keys, query i stands at key
    k - q + i. So decoding with a cache needs no case of its own.

    Args:
        causal: no key after the query's own place.
        window: W keys, oneself included. Causal: the W - 1 before and oneself; else W // 2 before
            and (W - 1) // 2 after.
        key_mask: [b k] bool, True at real keys.
        segment_ids: [b k] numbers of the packed sequences; attention stays within one. Each sequence
            is contiguous.
        query_segment_ids: [b q] the same for the queries, where they are not the last of the keys
            (cross-attention).

    Raises:
        UserError: a window below 1, or segments of the queries without those of the keys.
    """

    causal: bool = False
    window: int | None = None
    key_mask: Tensor | None = None
    segment_ids: Tensor | None = None
    query_segment_ids: Tensor | None = None

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise UserError(f"window must be at least 1 (oneself), got {self.window}.")
        if self.query_segment_ids is not None and self.segment_ids is None:
            raise UserError("query_segments are compared with segments: give both.")

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that are set."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return tuple(
            name for name, value in values.items() if value is not None and value is not False
        )

    def intersect(self, *, causal: bool = False, window: int | None = None) -> "Mask":
        """This mask, and causal or windowed besides."""
        windows = [w for w in (self.window, window) if w is not None]
        return replace(self, causal=self.causal or causal, window=min(windows) if windows else None)

    def visible(self, rows: range, columns: range, *, device: torch.device) -> Tensor | None:
        """The mask of some queries and keys.

        Args:
            rows: places of the queries among the keys (query i of q stands at k - q + i).
            columns: places of the keys.

        Returns:
            [b|1 1 q k] bool, or None where every query may attend to every key.
        """
        i = torch.arange(rows.start, rows.stop, device=device)[:, None]
        j = torch.arange(columns.start, columns.stop, device=device)[None, :]
        parts: list[Tensor] = []
        if self.causal and columns.stop - 1 > rows.start:
            parts.append((j <= i)[None, None])
        if self.window is not None:
            before, after = window_span(self.window, self.causal)
            if rows.stop - 1 - columns.start > before or columns.stop - 1 - rows.start > after:
                parts.append(((i - j <= before) & (j - i <= after))[None, None])
        if self.key_mask is not None:
            parts.append(self.key_mask[:, None, None, columns.start : columns.stop])
        if self.segment_ids is not None:
            queries = self.segment_ids_at(rows)[:, None, :, None]
            parts.append(queries == self.segment_ids[:, None, None, columns.start : columns.stop])
        if not parts:
            return None
        result = parts[0]
        for part in parts[1:]:
            result = result & part
        return result

    def gathered(self, queries: Tensor, keys: Tensor, length: int) -> Tensor:
        """The mask of queries and of the keys gathered for them, block by block.

        Args:
            queries: [b|1 m u], the columns where the queries of m blocks stand.
            keys: [b|1 m s], the columns of the keys of each block. Nobody sees one that is not
                among the `length` columns of the row.

        Returns:
            [b|1 m u s] bool.
        """
        i, j = queries[..., :, None], keys[..., None, :]
        visible = (j >= 0) & (j < length)
        if self.causal:
            visible = visible & (j <= i)
        if self.window is not None:
            before, after = window_span(self.window, self.causal)
            visible = visible & (i - j <= before) & (j - i <= after)
        if self.key_mask is not None:
            visible = visible & columns_of(self.key_mask, keys)[..., None, :]
        if self.segment_ids is not None:
            own = columns_of(self.segment_ids, queries)[..., :, None]
            visible = visible & (own == columns_of(self.segment_ids, keys)[..., None, :])
        return visible.expand(*visible.shape[:-2], queries.shape[-1], -1)

    def segment_ids_at(self, rows: range) -> Tensor:
        """[b q], those of the queries at these places."""
        assert self.segment_ids is not None
        if self.query_segment_ids is None:
            return self.segment_ids[:, rows.start : rows.stop]
        shift = self.segment_ids.shape[1] - self.query_segment_ids.shape[1]
        return self.query_segment_ids[:, rows.start - shift : rows.stop - shift]


@dataclass(frozen=True, kw_only=True)
class Visibility:
    """Who sees whom among some queries and keys, for a backend to render its own way.

    Args:
        mask: over whole rows.
        rows: places of the queries among the keys. columns: those of the keys. As of
            `Mask.visible`.
        pattern: what else must hold for a query to see a key.
        sinks: so many more keys stand before the others, and every query sees them.
    """

    mask: Mask
    rows: range
    columns: range
    pattern: Pattern | None = None
    sinks: int = 0

    @property
    def is_causal_square(self) -> bool:
        """Whether it is the lower triangle of a square, and nothing else."""
        square = self.rows.start == self.columns.start and self.rows.stop == self.columns.stop
        plain = self.pattern is None and not self.sinks
        return plain and square and self.mask.names == ("causal",)

    @property
    def batch(self) -> int | None:
        """How many rows of the batch differ; None where none does."""
        parts = (self.mask.key_mask, self.mask.segment_ids, self.mask.query_segment_ids)
        return max((len(part) for part in parts if part is not None), default=None)

    def dense(self, device: torch.device) -> Tensor | None:
        """[b|1 1 q k] bool, or None where every query sees every key."""
        visible = self.mask.visible(self.rows, self.columns, device=device)
        if self.pattern is not None:
            b = torch.arange(self.batch or 1, device=device)[:, None, None]
            i = torch.arange(self.rows.start, self.rows.stop, device=device)[:, None]
            j = torch.arange(self.columns.start, self.columns.stop, device=device)
            seen = self.pattern(b, i, j).expand(len(b), len(i), len(j))[:, None]
            visible = seen if visible is None else visible & seen
        if visible is None or not self.sinks:
            return visible
        return pad(visible, (self.sinks, 0), value=True)


def window_span(window: int, causal: bool) -> tuple[int, int]:
    """How many keys of a window stand before a query, and how many after it."""
    return (window - 1, 0) if causal else (window // 2, (window - 1) // 2)


def columns_of(x: Tensor, columns: Tensor) -> Tensor:
    """x [b|1 n] at columns [b|1 m s]: [b|1 m s]. Columns outside the row give what is at its end.

    >>> at(torch.tensor([[5, 6, 7]]), torch.tensor([[[-1, 1], [2, 3]]]))
    tensor([[[5, 6],
             [7, 7]]])
    """
    batch = max(len(x), len(columns))
    index = columns.clamp(0, x.shape[1] - 1).expand(batch, -1, -1)
    return x.expand(batch, -1).gather(1, index.flatten(1)).view(index.shape)
