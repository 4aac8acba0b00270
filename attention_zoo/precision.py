"""Protection from half precision, which loses too much in long sums, exponents and inverses."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def autocast_disabled(x: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast on the device of x; the meta device has no autocast."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def is_autocast_enabled(x: Tensor) -> bool:
    """Return whether autocast is on for the device of x; the meta device has none."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def upcast(x: Tensor) -> Tensor:
    """Convert x to float32, unless its type is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide; where the denominator is zero, return the numerator."""
    return numerator / denominator.masked_fill(denominator == 0.0, 1.0)
