"""What functions with gradients of their own share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attention_zoo.precision import is_autocast_enabled
from attention_zoo.tensor_checks import is_eager_cpu


def allows_own_gradients(*inputs: Tensor | None) -> bool:
    """Return whether a function may write its results and gradients in place.

    That is so on a CPU, for tensors of one type that autocast leaves alone.
    """
    given = [x for x in inputs if x is not None]
    has_one_type = len({x.dtype for x in given}) == 1
    return has_one_type and is_eager_cpu(given[0]) and not is_autocast_enabled(given[0])


def differentiate(
    formula: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Any],
    of_outputs: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of a formula's inputs, which can be differentiated themselves.

    Args:
        formula: computes the outputs of the inputs by operations of PyTorch.
        inputs: its arguments; None for one that is not given.
        of_outputs: the gradients of its outputs; None for an output that is not used.
        needed: which inputs need a gradient.
    """
    outputs = zip(formula(*inputs), of_outputs, strict=True)
    used, of_used = zip(*((x, of_x) for x, of_x in outputs if of_x is not None), strict=True)
    wanted = [x for x, is_needed in zip(inputs, needed, strict=True) if is_needed]
    found = iter(torch.autograd.grad(used, wanted, of_used, create_graph=True, allow_unused=True))
    return tuple(next(found) if is_needed else None for is_needed in needed)
