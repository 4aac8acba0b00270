"""The jobs of a sweep, run as devices become free."""

import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from attention_zoo.tasks.sweeps.devices import DevicePool
from attention_zoo.tasks.sweeps.jobs import Job
from attention_zoo.tasks.views.console import print_line

# Seconds that a job has to save its state, after Ctrl-C and after SIGTERM.
GRACE_SECONDS = (60.0, 10.0)


def run_jobs(
    jobs: Iterator[Job],
    *,
    command: Sequence[str],
    environment: Mapping[str, str],
    pool: DevicePool,
    fail_fast: bool,
    console: Console,
) -> None:
    """Run jobs as devices become free, and print how each one ended.

    The next job is drawn when there may be room for it. With `fail_fast`, the first job that fails
    stops the others; a refusal is no failure.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM, once all jobs have ended.
    """
    running: list[Job] = []
    waiting = next(jobs, None)
    with sigterm_as_interrupt():
        try:
            while waiting is not None or running:
                devices = None if waiting is None else pool.acquire(waiting)
                if waiting is not None and devices is not None:
                    live = pool.runs_alone(waiting)
                    print_start(waiting, console, live=live)
                    waiting.start(command, {**environment, **devices}, live=live)
                    running.append(waiting)
                    waiting = next(jobs, None)
                    continue
                time.sleep(0.05)
                for job in [job for job in running if job.poll()]:
                    running.remove(job)
                    pool.release(job)
                    print_outcome(job, console)
                    if fail_fast and job.record.has_failed:
                        stop_jobs(running, console)
                        return
        except BaseException:  # A cluster's scheduler stops us by errors of its own.
            stop_jobs(running, console)
            raise


def stop_jobs(running: list[Job], console: Console) -> None:
    """Stop jobs as Ctrl-C does, so that they save their state; then with SIGTERM and SIGKILL."""
    if running:
        print_line(console, f"stopping {len(running)} running jobs")
    for number, grace in zip((signal.SIGINT, signal.SIGTERM), GRACE_SECONDS, strict=True):
        for job in running:
            job.send_signal(number)
        deadline = time.monotonic() + grace
        while running and time.monotonic() < deadline:
            running[:] = [job for job in running if not job.poll()]
            time.sleep(0.05)
    for job in running:
        job.send_signal(signal.SIGKILL)
        assert job.process is not None
        job.process.wait()
        job.poll()


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGTERM, which would else leave the jobs running."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def print_start(job: Job, console: Console, *, live: bool) -> None:
    """Print that a job starts: as a heading, if its output follows."""
    if live:
        console.rule(f"job {job.number}: {job.name}", align="left")
    else:
        print_line(console, f"job {job.number} starts: {job.name}")


def print_outcome(job: Job, console: Console) -> None:
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
    table = Table("job", "overrides", "outcome", *scores)
    for job in jobs:
        values = [results[job.number].get(score) for score in scores]
        texts = ["" if value is None else f"{value:.3f}" for value in values]
        # As Text: a bracket in an override is no markup.
        cells = [Text(cell, overflow="fold") for cell in (job.name, str(job.record), *texts)]
        table.add_row(str(job.number), *cells)
    return table
