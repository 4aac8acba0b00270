"""The jobs of a sweep: each a process of its own, with a record of how it went in its folder."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from attention_zoo.tasks.commands.exit_codes import REFUSED

Outcome = Literal["waiting", "trained", "refused", "diverged", "failed", "killed", "not run"]
# There is nothing to gain from running these again: they would end the same.
FINISHED: tuple[Outcome, ...] = ("trained", "refused", "diverged")
RECORD = "job.json"
LOG = "job.log"
# Seconds that a job has to save what it can, after Ctrl-C and after SIGTERM.
GRACE = (60.0, 10.0)


@dataclass
class Job:
    """One of a sweep's runs.

    Args:
        number: its place in the sweep, and the name of its folder.
        overrides: all that its process is given.
        words: those of the user's.
        label: the words that set it apart from the other jobs.
        run: its folder.
    """

    number: int
    overrides: Sequence[str]
    words: Sequence[str]
    label: str
    run: Path
    # Of the config that it was composed of; None where it cannot be composed.
    fingerprint: str | None = None
    accelerator: str = "cpu"
    devices: int | str = 1
    outcome: Outcome = "waiting"
    code: int | None = None
    reason: str = ""
    seconds: float = 0.0
    process: subprocess.Popen[str] | None = field(default=None, repr=False)
    # What it wrote last.
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=8), repr=False)

    @property
    def finished(self) -> bool:
        return self.outcome in FINISHED

    @property
    def failed(self) -> bool:
        return self.outcome in ("failed", "killed", "diverged")

    @property
    def record(self) -> dict[str, Any]:
        """What an earlier launch left in the folder; empty, if nothing."""
        path = self.run / RECORD
        return json.loads(path.read_text()) if path.exists() else {}

    @property
    def metrics(self) -> dict[str, Any]:
        """The figures in `results.json`; empty, if there is none."""
        path = self.run / "results.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def restore(self) -> None:
        """Take up what an earlier launch came to."""
        record = self.record
        if record.get("outcome") in FINISHED:
            self.outcome, self.code = record["outcome"], record["code"]
            self.reason, self.seconds = record["reason"], record["seconds"]

    def start(self, command: Sequence[str], environment: Mapping[str, str], *, live: bool) -> None:
        """Start the process, from its last checkpoint where it has one.

        Args:
            command: what the overrides are added to.
            live: whether its output goes to the terminal too; it always goes to the log.
        """
        self.run.mkdir(parents=True, exist_ok=True)
        self.write_record()
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            self.command_line(command),
            # A progress bar wants the terminal itself.
            stdout=None if live else subprocess.PIPE,
            stderr=subprocess.PIPE if live else subprocess.STDOUT,
            text=True,
            errors="replace",
            env=dict(environment),
            # So that Ctrl-C reaches it by us alone, and all its ranks at once.
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self.read, args=(live,), daemon=True)
        self.reader.start()

    def command_line(self, command: Sequence[str]) -> list[str]:
        """What to call, for a run in the job's folder."""
        # Quoted, since the grammar of overrides gives commas and blanks a meaning.
        places = ["hydra.mode=RUN", f"hydra.run.dir='{self.run}'"]
        checkpoint = self.run / "checkpoints" / "last.ckpt"
        if checkpoint.exists():
            places.append(f"ckpt_path='{checkpoint.absolute()}'")
        return [*command, *self.overrides, *places]

    def read(self, live: bool) -> None:
        """Keep what the process writes, and show it."""
        assert self.process is not None
        stream = self.process.stderr if live else self.process.stdout
        assert stream is not None
        with stream, (self.run / LOG).open("a") as log:
            for line in stream:
                log.write(line)
                log.flush()
                if line.strip():
                    self.lines.append(line.rstrip())
                if live:
                    sys.stderr.write(line)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the job and all its ranks."""
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def has_ended(self) -> bool:
        """Whether the process is gone; if so, what came of it is on record."""
        assert self.process is not None
        code = self.process.poll()
        if code is None:
            return False
        self.signal(signal.SIGKILL)  # Ranks that outlive the first one.
        self.reader.join(timeout=5.0)
        self.code, self.seconds = code, time.monotonic() - self.started
        self.outcome, self.reason = self.judged(code)
        self.write_record()
        return True

    def judged(self, code: int) -> tuple[Outcome, str]:
        """What an exit code means."""
        last = self.lines[-1] if self.lines else ""
        if code == 0:
            return "trained", ""
        if code == REFUSED:
            return "refused", last.removeprefix("refused: ")
        if "not_finite" in self.metrics:
            return "diverged", last.removeprefix("error: training diverged: ")
        if code < 0:
            return "killed", f"signal {-code} ({signal.Signals(-code).name})"
        return "failed", last.removeprefix("error: ")

    def write_record(self) -> None:
        record = {
            "overrides": list(self.words),
            "config": self.fingerprint,
            "outcome": self.outcome,
            "code": self.code,
            "reason": self.reason,
            "seconds": round(self.seconds, 3),
        }
        draft = self.run / f".{RECORD}"
        draft.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        os.replace(draft, self.run / RECORD)

    @property
    def told(self) -> str:
        """How it went, and why."""
        # The sentences behind the reason, such as all legal choices, are in the log.
        reason = self.reason.partition(". ")[0]
        code = f" ({self.code})" if self.outcome == "failed" else ""
        return f"{self.outcome}{code}" + (f": {reason}" if reason else "")


class Pool:
    """The devices that jobs are given.

    A job that trains on GPUs gets as many as its Trainer asks for, as its own; the others get one
    of `slots` places on the CPU, and their share of its threads.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.free_slots = slots
        self.taken: dict[int, list[str]] = {}

    @cached_property
    def gpus(self) -> list[str]:
        """All that there are. To ask costs the import of torch, which no job on the CPU needs."""
        return visible_gpus()

    def trains_on_gpus(self, job: Job) -> bool:
        if job.accelerator == "cpu":
            return False
        return job.accelerator in ("gpu", "cuda") or (job.accelerator == "auto" and bool(self.gpus))

    def take(self, job: Job) -> dict[str, str] | None:
        """The environment that gives a job its devices; None, if it has to wait."""
        if self.trains_on_gpus(job):
            free = [gpu for gpu in self.gpus if gpu not in chain(*self.taken.values())]
            count = self.gpus_for(job)
            if len(free) < count:
                return None
            self.taken[job.number] = free[:count]
            return {"CUDA_VISIBLE_DEVICES": ",".join(free[:count])}
        if self.free_slots == 0:
            return None
        self.free_slots -= 1
        if self.slots == 1 or "OMP_NUM_THREADS" in os.environ:
            return {}
        return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.slots))}

    def gpus_for(self, job: Job) -> int:
        """As many as its Trainer asks for; all, where it asks for `auto` or -1."""
        there = len(self.gpus)
        asked = isinstance(job.devices, int) and job.devices > 0
        return min(int(job.devices), there) if asked else there

    def give_back(self, job: Job) -> None:
        if self.taken.pop(job.number, None) is None:
            self.free_slots += 1

    def is_for_one(self, job: Job) -> bool:
        """Whether no other job can run beside this one."""
        if not self.trains_on_gpus(job):
            return self.slots == 1
        return self.gpus_for(job) == len(self.gpus)


class WholeMachine(Pool):
    """All that there is, for the one job that another launcher has put here."""

    def __init__(self) -> None:
        super().__init__(slots=1)

    def trains_on_gpus(self, job: Job) -> bool:
        return False  # Nothing is to be shared out.

    def is_for_one(self, job: Job) -> bool:
        return False  # The terminal, if there is one, is for others too.


def visible_gpus() -> list[str]:
    import torch

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen:
        return chosen.split(",")
    return [str(index) for index in range(torch.cuda.device_count())]


def run_jobs(
    jobs: Iterator[Job],
    *,
    command: Sequence[str],
    environment: Mapping[str, str],
    pool: Pool,
    fail_fast: bool,
    console: Any,
) -> None:
    """Run jobs as devices become free, and say how each one went when it ends.

    Args:
        jobs: those that are not finished; each is asked for when there may be room for it.
        fail_fast: end the others at the first one that fails. A refusal is no failure.

    Raises:
        KeyboardInterrupt: Ctrl-C, or SIGTERM, once all jobs have ended.
    """
    running: list[Job] = []
    waiting = next(jobs, None)
    with interruptible():
        try:
            while waiting is not None or running:
                devices = None if waiting is None else pool.take(waiting)
                if waiting is not None and devices is not None:
                    begin(waiting, command, {**environment, **devices}, pool, console)
                    running.append(waiting)
                    waiting = next(jobs, None)
                    continue
                time.sleep(0.05)
                for job in [job for job in running if job.has_ended()]:
                    running.remove(job)
                    pool.give_back(job)
                    tell(job, console)
                    if fail_fast and job.failed:
                        end(running, console)
                        return
        except BaseException:  # A cluster's scheduler ends us by errors of its own.
            end(running, console)
            raise


def begin(
    job: Job, command: Sequence[str], environment: Mapping[str, str], pool: Pool, console: Any
) -> None:
    live = pool.is_for_one(job)
    if live:
        console.rule(f"job {job.number}: {job.label}", align="left")
    else:
        say(console, f"job {job.number} starts: {job.label}")
    job.start(command, environment, live=live)


def tell(job: Job, console: Any) -> None:
    """Print how a job went; of one that failed, its last lines and where the others are."""
    say(console, f"job {job.number} ({job.label}), {job.seconds:.0f} s: {job.told}")
    if job.failed:
        for line in job.lines:
            say(console, f"    {line}")
        say(console, f"    log: {job.run / LOG}")


def say(console: Any, line: str) -> None:
    """A line as it is, however long, to be copied."""
    console.print(line, highlight=False, soft_wrap=True, markup=False)


def end(running: list[Job], console: Any) -> None:
    """End jobs as Ctrl-C does, so that they save what they can; then less gently."""
    if running:
        say(console, f"ending {len(running)} running jobs")
    steps = zip((signal.SIGINT, signal.SIGTERM), GRACE, strict=True)
    for number, grace in steps:
        for job in running:
            job.signal(number)
        until = time.monotonic() + grace
        while running and time.monotonic() < until:
            running[:] = [job for job in running if not job.has_ended()]
            time.sleep(0.05)
    for job in running:
        job.signal(signal.SIGKILL)
        assert job.process is not None
        job.process.wait()
        job.has_ended()


class interruptible:
    """SIGTERM interrupts as Ctrl-C does: else it would leave the jobs behind."""

    def __enter__(self) -> None:
        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        self.main = threading.current_thread() is threading.main_thread()
        if self.main:
            self.before = signal.signal(signal.SIGTERM, interrupt)

    def __exit__(self, *_: Any) -> None:
        if self.main:
            signal.signal(signal.SIGTERM, self.before)


def summary(jobs: Sequence[Job]) -> Any:
    """A table of the jobs: what sets each apart, and its scores or why it has none."""
    from rich.table import Table
    from rich.text import Text

    metrics = {job.number: job.metrics for job in jobs}
    scores = ["val/loss", "test/loss"]
    if any("test/accuracy" in found for found in metrics.values()):
        scores.append("test/accuracy")
    table = Table("job", "overrides", "outcome", *scores)
    for job in jobs:
        figures = [metrics[job.number].get(name) for name in scores]
        texts = ["" if figure is None else f"{figure:.3f}" for figure in figures]
        # As they are: a bracket in an override is no markup.
        cells = [Text(cell, overflow="fold") for cell in (job.label, job.told, *texts)]
        table.add_row(str(job.number), *cells)
    return table
