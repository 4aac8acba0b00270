"""What the inputs of attention leave open."""

import torch
from torch import Tensor

from attention_zoo.attention.sharing import SharedKV
from attention_zoo.caches import Cache
from attention_zoo.tensor_checks import check_positions


def is_empty(x: Tensor, context: Tensor | None) -> bool:
    """Return whether there is no sequence, no query or no key."""
    return not x.numel() or (context is not None and not context.numel())


def resolve_positions(
    x: Tensor, positions: Tensor | None = None, cache: Cache | SharedKV | None = None
) -> Tensor:
    """Return the positions [b|1 q] of x: the given ones, or those after the cached tokens."""
    if positions is not None:
        if not torch.compiler.is_compiling():
            check_positions(positions, x)
        return positions
    start = 0 if cache is None else cache.length
    return torch.arange(start, start + x.shape[1], device=x.device)[None, :]
