"""The memory that a computation needs, counted exactly and alike on every run."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Memory(TorchDispatchMode):
    """Record the storages that operators return: the largest, and the most alive at once, in bytes.

    It counts both passes. It does not count what a fused kernel allocates inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[StorageWeakRef, int] = {}
        self.largest = 0
        self.peak = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.alive = {ref: size for ref, size in self.alive.items() if not ref.expired()}
        for part in tree_leaves(out):
            if isinstance(part, Tensor):
                storage = part.untyped_storage()
                self.alive[StorageWeakRef(storage)] = storage.nbytes()
                self.largest = max(self.largest, storage.nbytes())
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def measure_memory(compute: Callable[[], Tensor]) -> Memory:
    """Measure a computation, and the backward pass of the sum of its result."""
    with Memory() as memory, torch.enable_grad():
        compute().sum().backward()
    return memory
