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
