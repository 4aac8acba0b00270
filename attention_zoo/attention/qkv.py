"""Projected queries, keys and values, and spans of them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from attention_zoo.masks import Columns, Visibility, window_span

MIN_BLOCK = 64  # queries; smaller blocks cost more in calls than they save in work


class QKV(NamedTuple):
    """Projected queries, keys and values; keys and values include the cached ones."""

    q: Tensor  # [b h q c]
    k: Tensor  # [b g k c]
    v: Tensor  # [b g k c]
    q_positions: Tensor  # [b|1 q]
    k_positions: Tensor  # [b|1 k]
    # What else the mechanism keeps of every key, [b … k c] each, or of every query, [b … q c].
    features: dict[str, Tensor]


def unpack_tokens(q: Tensor, q_positions: Tensor, tokens: dict[str, Tensor]) -> QKV:
    """Join queries with the features of every key."""
    features = {k: v for k, v in tokens.items() if k not in ("keys", "values", "positions")}
    k_positions = tokens["positions"][..., 0]
    return QKV(q, tokens["keys"], tokens["values"], q_positions, k_positions, features)


def window_spans(qkv: QKV, visible: Visibility) -> Iterator[tuple[QKV, Visibility]]:
    """Yield blocks of queries, each with the keys in the windows of the mask.

    So work and memory grow with length × window.
    """
    mask, queries, keys = visible.mask, visible.rows, visible.columns
    assert mask.window is not None
    before, after = window_span(mask.window, mask.causal)
    block = max(mask.window, MIN_BLOCK)
    # Counted, as torch.compile makes constants of a range's ends, but not of a length's blocks.
    for index in range(-(-qkv.q.shape[2] // block)):
        start = queries.start + index * block
        rows = Columns(start, min(start + block, queries.stop))
        first, stop = max(rows.start - before, keys.start), min(rows.stop + after, keys.stop)
        part = slice_qkv(
            qkv,
            slice(rows.start - queries.start, rows.stop - queries.start),
            slice(first - keys.start, stop - keys.start),
        )
        yield part, replace(visible, rows=rows, columns=Columns(first, stop))


def slice_qkv(qkv: QKV, queries: slice, keys: slice) -> QKV:
    """Return some of the queries, and some of the keys with their values and features."""
    # torch.compile makes constants of the ends of a slice that a comprehension captures.
    start, stop = keys.start, keys.stop
    return QKV(
        qkv.q[:, :, queries],
        qkv.k[:, :, keys],
        qkv.v[:, :, keys],
        qkv.q_positions[:, queries],
        qkv.k_positions[:, keys],
        {name: feature[..., start:stop, :] for name, feature in qkv.features.items()},
    )
