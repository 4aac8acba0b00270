"""The most memory that a training takes."""

import sys
from contextlib import suppress
from pathlib import Path

import torch
from lightning import Trainer


def reset_peak(device: torch.device) -> None:
    """Forget what was taken before, such as by the preparation of the data."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError):  # Some containers do not let a process do this.
            Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(trainer: Trainer) -> int:
    """Bytes since `reset_peak`, of the rank that took the most.

    On a GPU, of the tensors allocated on it; on the CPU, of the process's memory that was resident
    at a time, which holds its libraries too. All ranks have to ask.
    """
    device = trainer.strategy.root_device
    on_gpu = device.type == "cuda"
    most = torch.cuda.max_memory_allocated(device) if on_gpu else most_resident()
    peak = torch.tensor(most, device=device)
    return int(trainer.strategy.reduce(peak, reduce_op="max"))


def most_resident() -> int:
    """Of this process. Unlike `resource`'s figure, Linux's own is not inherited from its parent."""
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
