"""The jobs of a sweep, run as devices become free."""

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain

from rich.console import Console

from attention_zoo.tasks.interruption import interruptible
from attention_zoo.tasks.sweeps.jobs import Job
from attention_zoo.tasks.views.console import print_line
from attention_zoo.tasks.views.tables import Table
from attention_zoo.tasks.wording import pluralize

# Seconds that a job has to save its state, after Ctrl-C and after SIGTERM.
GRACE_SECONDS = (60.0, 10.0)


class DevicePool:
    """The devices that jobs share.

    A job that trains on GPUs gets as many as its Trainer asks for, for itself alone. Any other job
    gets one of `cpu_slots`, and an equal share of the CPU's threads.
    """

    def __init__(self, cpu_slots: int) -> None:
        self.cpu_slots = cpu_slots
        self.free_cpu_slots = cpu_slots
        self.gpus_in_use: dict[int, list[str]] = {}

    @cached_property
    def gpus(self) -> list[str]:
        """All GPUs, as CUDA_VISIBLE_DEVICES names them."""
        import torch  # which jobs on the CPU can do without

        if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
            return visible.split(",")
        return [str(index) for index in range(torch.cuda.device_count())]

    def uses_gpus(self, job: Job) -> bool:
        """Return whether a job trains on GPUs."""
        return job.accelerator in ("gpu", "cuda") or (job.accelerator == "auto" and bool(self.gpus))

    def gpu_count(self, job: Job) -> int:
        """Return how many GPUs a job gets: all, if its Trainer asks for `auto` or -1."""
        if isinstance(job.devices, int) and job.devices > 0:
            return min(job.devices, len(self.gpus))
        return len(self.gpus)

    def acquire(self, job: Job) -> dict[str, str] | None:
        """Return the environment that gives a job its devices; None, if it has to wait."""
        if self.uses_gpus(job):
            in_use, count = [*chain(*self.gpus_in_use.values())], self.gpu_count(job)
            free = [gpu for gpu in self.gpus if gpu not in in_use][:count]
            if len(free) < count:
                return None
            self.gpus_in_use[job.number] = free
            return {"CUDA_VISIBLE_DEVICES": ",".join(free)}
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


def run_jobs(
    jobs: Iterator[Job],
    *,
    command: Sequence[str],
    environment: Mapping[str, str],
    pool: DevicePool,
    fail_fast: bool,
    console: Console,
    use_terminal: bool = True,
) -> None:
    """Run jobs as devices become free, and print how each one ended.

    The next job is drawn when there may be room for it. With `fail_fast`, the first job that fails
    stops the others; a refusal is no failure. With `use_terminal`, the output of a job that runs
    alone goes to the terminal. Ctrl-C and SIGTERM end all jobs.
    """
    running: list[Job] = []
    waiting = next(jobs, None)
    with interruptible():
        try:
            while waiting or running:
                if waiting and (devices := pool.acquire(waiting)) is not None:
                    live = use_terminal and pool.runs_alone(waiting)
                    if live:
                        console.rule(f"job {waiting.number}: {waiting.name}", align="left")
                    else:
                        print_line(console, f"job {waiting.number} starts: {waiting.name}")
                    waiting.start(command, {**environment, **devices}, live=live)
                    running.append(waiting)
                    waiting = next(jobs, None)
                    continue
                time.sleep(0.05)
                for job in [job for job in running if job.poll()]:
                    running.remove(job)
                    pool.release(job)
                    print_job_outcome(job, console)
                    if fail_fast and job.record.has_failed:
                        stop_jobs(running, console)
                        return
        except BaseException:  # A cluster's scheduler stops us by errors of its own.
            stop_jobs(running, console)
            raise


def stop_jobs(running: list[Job], console: Console) -> None:
    """Stop jobs as Ctrl-C does, so that they save their state; then with SIGTERM and SIGKILL."""
    if running:
        print_line(console, f"stopping {pluralize(len(running), 'running job')}")
    try:
        for number, grace in zip((signal.SIGINT, signal.SIGTERM), GRACE_SECONDS, strict=True):
            for job in running:
                job.send_signal(number)
            deadline = time.monotonic() + grace
            while running and time.monotonic() < deadline:
                running[:] = [job for job in running if not job.poll()]
                time.sleep(0.05)
    finally:  # Another signal does not wait.
        for job in running:
            job.send_signal(signal.SIGKILL)
            job.process.wait()
            job.poll()


def print_job_outcome(job: Job, console: Console) -> None:
    """Print how a job ended; if it failed, its last lines and the path of its log too."""
    print_line(console, f"job {job.number} ({job.name}), {job.record.seconds:.0f} s: {job.record}")
    if job.record.has_failed:
        for line in job.last_lines:
            print_line(console, f"    {line}")
        print_line(console, f"    log: {job.folder.log_file}")


def outcome_table(jobs: Sequence[Job]) -> Table:
    """Return a table of the jobs: what distinguishes each, its outcome and its scores."""
    results = {job.number: job.folder.read_results() for job in jobs}
    scores = ["val/loss", "test/loss"]
    if any("test/accuracy" in metrics for metrics in results.values()):
        scores.append("test/accuracy")
    rows = []
    for job in jobs:
        values = map(results[job.number].get, scores)
        texts = ["" if value is None else f"{value:.3f}" for value in values]
        rows.append((str(job.number), job.name, str(job.record), *texts))
    return Table("", ["job", "overrides", "outcome", *scores], rows, "lll" + "r" * len(scores))
