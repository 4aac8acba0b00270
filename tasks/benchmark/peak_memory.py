"""The peak of the memory that the tensors of a training step take."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_tensor_bytes(
    step: Callable[[], None], existing: Iterable[Tensor], device: torch.device
) -> int:
    """Return the most bytes that `existing` tensors and those that a step makes take at a time.

    On a GPU its allocator counts. On the CPU it is the tensors that operations return, forward and
    backward, as long as they live; buffers inside an operation, as in a fused kernel, are not seen.
    The resident memory of the process says less: freed memory stays with it.
    """
    existing = list(existing)
    own_bytes = sum(x.nbytes for x in existing)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return own_bytes + torch.cuda.max_memory_allocated(device) - before
    with AllocationCounter(existing) as counter:
        step()
    return own_bytes + counter.peak


class AllocationCounter(TorchDispatchMode):
    """Count the bytes of the tensors that operations return, but for `existing` ones and views."""

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0
        self.counted = {x.untyped_storage().data_ptr() for x in existing}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                self.count(tensor.untyped_storage())
        return results

    def count(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is freed."""
        address, size = storage.data_ptr(), storage.nbytes()
        if size and address not in self.counted:
            self.counted.add(address)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self.forget, address, size).atexit = False

    def forget(self, address: int, size: int) -> None:
        """Stop counting a storage that was freed."""
        self.counted.discard(address)
        self.bytes -= size
