"""What mechanisms share that let each query choose its keys: gathering, weighing, spreading out.

Letters: n chosen keys, e heads that choose (1, g or h), r = h / e heads that share a choice.
"""

from itertools import product
from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.softmax import SoftmaxAttention
from attention_zoo.backends.reference import masked_softmax, repeat_heads

# Keys, of all queries together, that are gathered at once for a head. They are made again in the
# backward pass, which then writes a gradient as large as all keys.
GATHERED = 1 << 14


class ChoosingAttention(SoftmaxAttention):
    """Softmax attention to keys that each query chooses by scores of its own, so without a backend.

    `Heads.more` holds what the mechanism needs of every query beside q, [b … q …] each.
    """

    decided_options = ("backend",)

    def __init__(self, **options: Any) -> None:
        super().__init__(backend="reference", **options)

    def dropped(self, weights: Tensor) -> Tensor:
        return torch.dropout(weights, self.dropout, train=self.training)

    def naive(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        visible: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        """`naive_query` for one query after the other, with the keys that it may choose from."""
        heads = self.heads_of(x, context, positions, None)
        out = heads.v.new_zeros(len(x), self.heads, x.shape[1], self.head_dim)
        for b, i in product(range(len(x)), range(x.shape[1])):
            seen = visible[b, i].nonzero()[:, 0]
            if len(seen):
                more = {name: part[b, :, i] for name, part in heads.more.items()}
                k, v = heads.k[b][:, seen], heads.v[b][:, seen]
                out[b, :, i] = self.naive_query(heads.q[b, :, i], k, v, **more)
        return self.finish(out, x)

    def naive_query(self, q: Tensor, k: Tensor, v: Tensor, **more: Tensor) -> Tensor:
        """[h c], of a query [h c] and all that it sees, k and v [g n c] in their order."""
        raise NotImplementedError


def parts(queries: int, keys: int) -> list[slice]:
    """Queries that gather this many keys each, divided into parts that are computed one by one."""
    size = max(GATHERED // keys, 1)
    return [slice(start, min(start + size, queries)) for start in range(0, queries, size)]


def largest(scores: Tensor, count: int) -> Tensor:
    """The places [… count] of the largest of [… n]; of equal ones, the latest."""
    order = scores.flip(-1).argsort(dim=-1, descending=True, stable=True)
    return scores.shape[-1] - 1 - order[..., :count]


def gathered(x: Tensor, chosen: Tensor) -> Tensor:
    """The rows [b e q n c] of x [b g k c] at the places chosen [b|1 e q n]; e a multiple of g.

    One choice (e = 1) is that of all g. With q = 1 the queries share the rows.
    """
    b, g, k, _ = x.shape
    base = torch.arange(0, b * g * k, k, device=x.device).view(b, g, 1, 1)
    rows = base.repeat_interleave(max(chosen.shape[1] // g, 1), dim=1) + chosen
    return x.flatten(0, 2).index_select(0, rows.flatten()).unflatten(0, rows.shape)


def products(q: Tensor, keys: Tensor) -> Tensor:
    """Q [b h q c] times the keys of each query, or of all, [b e q|1 n c]: [b h q n]."""
    grouped = q.unflatten(1, (keys.shape[1], -1))
    return torch.einsum("b e r q c, b e q n c -> b e r q n", grouped, keys).flatten(1, 2)


def weigh(q: Tensor, keys: Tensor, visible: Tensor, scale: float) -> Tensor:
    """softmax(q·k·scale) [b h q n] over what is visible [b|1 1|e q n]; zeros if nothing is."""
    scores = products(q, keys) * scale
    return masked_softmax(scores, repeat_heads(visible, q.shape[1]))


def weighted(weights: Tensor, values: Tensor) -> Tensor:
    """The sums [b h q c] of values [b e q|1 n c] by weights [b h q n]."""
    grouped = weights.unflatten(1, (values.shape[1], -1))
    return torch.einsum("b e r q n, b e q n c -> b e r q c", grouped, values).flatten(1, 2)


def spread(weights: Tensor, chosen: Tensor, keys: int) -> Tensor:
    """Weights [b h q n] of chosen places [b|1 e q|1 n] -> [b h q k], zeros elsewhere."""
    token_positions = repeat_heads(chosen, weights.shape[1]).expand_as(weights)
    empty = weights.new_zeros(*weights.shape[:3], keys)
    return empty.scatter_add(3, token_positions, weights)
