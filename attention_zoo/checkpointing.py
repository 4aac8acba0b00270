"""Activation checkpointing: what is large is computed again in the backward pass, and not kept."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import checkpoint as torch_checkpoint


def checkpoint(function: Callable[..., Any], *inputs: Any) -> Any:
    """Call a function whose intermediate results the backward pass computes again.

    Under the transforms of torch.func, which have no hooks for that, the results are kept.
    """
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return function(*inputs)
    return torch_checkpoint.checkpoint(function, *inputs, use_reentrant=False)
