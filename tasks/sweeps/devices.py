"""The devices of this machine, shared out to the jobs of a sweep."""

import os
from functools import cached_property
from itertools import chain

from attention_zoo.tasks.sweeps.jobs import Job


class DevicePool:
    """The devices that jobs share.

    A job that trains on GPUs gets as many as its Trainer asks for, for itself alone. Any other job
    gets one of `cpu_slots` and an equal share of the CPU's threads.
    """

    def __init__(self, cpu_slots: int) -> None:
        self.cpu_slots = cpu_slots
        self.free_cpu_slots = cpu_slots
        self.gpus_in_use: dict[int, list[str]] = {}

    @cached_property
    def gpus(self) -> list[str]:
        """All GPUs, as CUDA_VISIBLE_DEVICES names them.

        Asking for them imports torch, which jobs on the CPU can do without.
        """
        import torch

        if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
            return visible.split(",")
        return [str(index) for index in range(torch.cuda.device_count())]

    def uses_gpus(self, job: Job) -> bool:
        """Return whether a job trains on GPUs."""
        if job.accelerator == "cpu":
            return False
        return job.accelerator in ("gpu", "cuda") or (job.accelerator == "auto" and bool(self.gpus))

    def gpu_count(self, job: Job) -> int:
        """Return how many GPUs a job gets: all, if its Trainer asks for `auto` or -1."""
        if isinstance(job.devices, int) and job.devices > 0:
            return min(job.devices, len(self.gpus))
        return len(self.gpus)

    def acquire(self, job: Job) -> dict[str, str] | None:
        """Return the environment that gives a job its devices; None, if it has to wait."""
        if self.uses_gpus(job):
            free = [gpu for gpu in self.gpus if gpu not in chain(*self.gpus_in_use.values())]
            count = self.gpu_count(job)
            if len(free) < count:
                return None
            self.gpus_in_use[job.number] = free[:count]
            return {"CUDA_VISIBLE_DEVICES": ",".join(free[:count])}
        if self.free_cpu_slots == 0:
            return None
        self.free_cpu_slots -= 1
        if self.cpu_slots == 1 or "OMP_NUM_THREADS" in os.environ:
            return {}
        return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.cpu_slots))}

    def release(self, job: Job) -> None:
        """Take back the devices of a job that has ended."""
        if self.gpus_in_use.pop(job.number, None) is None:
            self.free_cpu_slots += 1

    def runs_alone(self, job: Job) -> bool:
        """Return whether no other job can run at the same time."""
        if not self.uses_gpus(job):
            return self.cpu_slots == 1
        return self.gpu_count(job) == len(self.gpus)


class AssignedDevices(DevicePool):
    """The devices that another launcher has assigned to its one job, which uses them all."""

    def __init__(self) -> None:
        super().__init__(cpu_slots=1)

    def uses_gpus(self, job: Job) -> bool:
        return False  # There is nothing to share out.

    def runs_alone(self, job: Job) -> bool:
        return False  # The other launcher may run more jobs, on the same terminal.
