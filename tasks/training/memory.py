"""The peak memory of a training."""

import sys
from contextlib import suppress
from pathlib import Path

import torch
from lightning import Trainer


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak so far, for instance that of the preparation of the data."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError):  # Some containers forbid it.
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(trainer: Trainer) -> int:
    """Return the peak since `reset_peak_memory`, of the rank with the highest one.

    On a GPU it counts the tensors allocated there; on the CPU the resident memory of the process,
    its libraries included. All ranks have to call this.
    """
    device = trainer.strategy.root_device
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else peak_resident_bytes()
    return int(trainer.strategy.reduce(torch.tensor(peak, device=device), reduce_op="max"))


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this process."""
    if sys.platform == "linux":
        # Unlike the number of `resource`, this one is not inherited from the parent process.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
