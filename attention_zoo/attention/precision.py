"""Where half precision would lose too much: sums of many terms, exponents, inverses."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def autocast_disabled(x: Tensor) -> AbstractContextManager[object]:
    """A context without autocast, for the device of x; the meta device has no autocast at all."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def upcast(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide; where the denominator is zero, return the numerator."""
    return numerator / denominator.masked_fill(denominator == 0.0, 1.0)
