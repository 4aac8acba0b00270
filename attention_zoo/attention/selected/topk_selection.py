"""Selection of keys by each query, by scores, and attention to the selected keys.

Letters: n selected keys, e heads that select (1, g or h), r = h / e heads that share a selection.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.softmax import QKV, SoftmaxAttention
from attention_zoo.backends.reference import masked_softmax, repeat_heads
from attention_zoo.masks import Visibility

# Number of keys, of all queries together, that are gathered at once for a head. They are gathered
# again in the backward pass, which then writes a gradient as large as all keys.
MAX_GATHERED_KEYS = 1 << 14


class TopKSelectionAttention(SoftmaxAttention):
    """Softmax attention to keys that each query selects by separate scores, without a backend.

    `QKV.features` holds what the mechanism needs of every query besides q, [b … q …] each.
    """

    decided_options = ("backend",)

    def __init__(self, **options: Any) -> None:
        super().__init__(backend="reference", **options)

    def window_spans(self, qkv: QKV, visible: Visibility) -> Iterator[tuple[QKV, Visibility]]:
        """Yield all queries at once, as only selected keys are gathered for each."""
        yield qkv, visible

    def weigh_selected(self, q: Tensor, k: Tensor, indices: Tensor, visible: Tensor) -> Tensor:
        """Return the weights [b h q n] of the keys at indices in k [b g k c], where visible."""
        return weigh_keys(q, gather_selected(k, indices), visible, self.scale)

    def sum_selected(self, weights: Tensor, v: Tensor, indices: Tensor) -> Tensor:
        """Sum the values [b h q c] at indices in v [b g k c] by weights [b h q n]."""
        values = gather_selected(v, indices)
        weights = self.drop_weights(weights).unflatten(1, (values.shape[1], -1))
        return torch.einsum("b e r q n, b e q n c -> b e r q c", weights, values).flatten(1, 2)


def split_queries(queries: int, keys: int) -> list[slice]:
    """Split queries into slices that gather MAX_GATHERED_KEYS at most, `keys` for each query."""
    size = max(MAX_GATHERED_KEYS // keys, 1)
    # Counted, as torch.compile makes constants of a range's ends, but not of a length's blocks.
    starts = [index * size for index in range(-(-queries // size))]
    return [slice(start, min(start + size, queries)) for start in starts]


def select_largest(scores: Tensor, count: int) -> Tensor:
    """Return the indices [… count] of the largest scores [… n]; of equal ones, the latest."""
    order = scores.flip(-1).argsort(dim=-1, descending=True, stable=True)
    return scores.shape[-1] - 1 - order[..., :count]


def gather_selected(x: Tensor, indices: Tensor) -> Tensor:
    """Gather the rows [b e q n c] of x [b g k c] at indices [b|1 e q n]; e is a multiple of g.

    A single selection (e = 1) applies to all g. With q = 1 the queries share the rows.
    """
    b, g, k, _ = x.shape
    base = torch.arange(0, b * g * k, k, device=x.device).view(b, g, 1, 1)
    rows = base.repeat_interleave(max(indices.shape[1] // g, 1), dim=1) + indices
    return x.flatten(0, 2).index_select(0, rows.flatten()).unflatten(0, rows.shape)


def score_keys(q: Tensor, keys: Tensor) -> Tensor:
    """Multiply queries [b h q c] by the keys of each, or of all, [b e q|1 n c]: [b h q n]."""
    grouped = q.unflatten(1, (keys.shape[1], -1))
    return torch.einsum("b e r q c, b e q n c -> b e r q n", grouped, keys).flatten(1, 2)


def weigh_keys(q: Tensor, keys: Tensor, visible: Tensor, scale: float) -> Tensor:
    """Compute softmax(q·k·scale) [b h q n] over visible [b|1 1|e q n] keys; zeros for none."""
    scores = score_keys(q, keys) * scale
    return masked_softmax(scores, repeat_heads(visible, q.shape[1]))


def scatter_weights(weights: Tensor, indices: Tensor, keys: int) -> Tensor:
    """Scatter weights [b h q n] of keys at indices [b|1 e q|1 n] to [b h q k], zeros elsewhere."""
    indices = repeat_heads(indices, weights.shape[1]).expand_as(weights)
    return weights.new_zeros(*weights.shape[:3], keys).scatter_add(3, indices, weights)
