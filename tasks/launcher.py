"""`hydra/launcher=processes`: every job of a sweep is a process of its own.

One process for all jobs would let loggers, random states and process groups leak from one into the
next, and a distributed job inside a sweep would start the sweep again.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from attention_zoo.errors import UserError
from attention_zoo.tasks.exits import REFUSED


class ProcessesLauncher(Launcher):
    """Runs the jobs one after the other, and says at the end how each one went.

    A job that is refused or that fails does not keep the others from running.
    """

    environment: ClassVar[dict[str, str]] = {}  # as the user set it

    def __init__(self, command: list[str]) -> None:
        self.command = command

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from rich.console import Console

        setup_globals()
        console = Console()
        jobs = [
            self.run_job(console, number, overrides)
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        console.print(summary(jobs))
        report_lengths(console, jobs, Path(self.config.hydra.sweep.dir))
        console.print(f"Sweep: {self.config.hydra.sweep.dir}", soft_wrap=True)
        return [returned(job) for job in jobs]

    def run_job(self, console: Any, number: int, overrides: Sequence[str]) -> dict[str, Any]:
        """Run a job to its end: its number, words, exit code, last line of errors and metrics."""
        with open_dict(self.config):
            self.config.hydra.job.num = number
        run = Path(self.config.hydra.sweep.dir) / str(self.config.hydra.sweep.subdir)
        words = filter_overrides(overrides)
        console.rule(f"job {number}: {' '.join(words)}", align="left")
        # Quoted, since the grammar of overrides gives commas and blanks a meaning.
        places = ["hydra.mode=RUN", f"hydra.run.dir='{run}'"]
        process = subprocess.Popen(
            [*self.command, *overrides, *places],
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )
        assert process.stderr is not None
        last = ""
        try:
            for line in process.stderr:
                sys.stderr.write(line)
                last = line.strip() or last
        except KeyboardInterrupt:
            process.wait()  # The job has had the signal too, and saves what it can.
            raise
        results = run / "results.json"
        metrics = json.loads(results.read_text()) if results.exists() else {}
        return {
            "number": number,
            "overrides": overrides,
            "words": words,
            "code": process.wait(),
            "last": last,
            "metrics": metrics,
        }


def summary(jobs: list[dict[str, Any]]) -> Any:
    """A table of the jobs: what sets each apart, and its scores or why it has none."""
    from rich.table import Table
    from rich.text import Text

    apart = set_apart(jobs)
    scores = ["val/loss", "test/loss"]
    if any("test/accuracy" in job["metrics"] for job in jobs):
        scores.append("test/accuracy")
    table = Table("job", "overrides", "outcome", *scores)
    for job in jobs:
        # The sentences behind the reason, such as all legal choices, were printed by the job.
        reason = job["last"].split(". ")[0]
        outcome = {0: "trained", REFUSED: reason}.get(
            job["code"], f"failed ({job['code']}): {reason}"
        )
        figures = [job["metrics"].get(name) for name in scores]
        texts = ["" if figure is None else f"{figure:.3f}" for figure in figures]
        words = "\n".join(apart[job["number"]])
        # As they are: a bracket in an override is no markup.
        cells = [Text(cell, overflow="fold") for cell in (words, outcome, *texts)]
        table.add_row(str(job["number"]), *cells)
    return table


def set_apart(jobs: list[dict[str, Any]]) -> dict[int, list[str]]:
    """By the jobs' numbers, the words that not all of them have."""
    shared = set.intersection(*(set(job["words"]) for job in jobs)) if len(jobs) > 1 else set()
    return {job["number"]: [word for word in job["words"] if word not in shared] for job in jobs}


def report_lengths(console: Any, jobs: list[dict[str, Any]], folder: Path) -> None:
    """Where jobs were scored at several lengths: a table, and a picture in the sweep's folder."""
    apart = set_apart(jobs)
    scored = {
        " ".join(apart[job["number"]]) or f"job {job['number']}": job["metrics"]
        for job in jobs
        if "lengths" in job["metrics"]
    }
    if scored:
        from attention_zoo.tasks.length_report import report_sweep

        report_sweep(console, scored, folder)


def returned(job: dict[str, Any]) -> JobReturn:
    """What Hydra's sweepers ask of a job. Its value is what an optimiser would minimise."""
    result = JobReturn(overrides=job["overrides"])
    if job["code"] in (0, REFUSED):
        result.status = JobStatus.COMPLETED
        result.return_value = job["metrics"].get("val/loss")
    else:
        result.status = JobStatus.FAILED
        result.return_value = UserError(f"job {job['number']} failed: {job['last']}")
    return result


# Hydra instantiates launchers of the module `hydra_plugins` only. A real module of that name would
# be imported by every Hydra program of the environment; ours is registered when our program runs.
ProcessesLauncher.__module__ = "hydra_plugins.attention_zoo"


def register_launcher(verb: str) -> None:
    """Make `hydra/launcher=processes` known, for jobs of a verb."""
    Plugins.instance().register(ProcessesLauncher)
    # Hydra finds the class by importing what it calls itself.
    module = ProcessesLauncher.__module__
    if "hydra_plugins" not in sys.modules and find_spec("hydra_plugins") is None:
        sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
    sys.modules[module] = sys.modules[__name__]
    ProcessesLauncher.environment = dict(os.environ)
    node = {
        "_target_": f"{ProcessesLauncher.__module__}.{ProcessesLauncher.__name__}",
        "command": [sys.executable, "-m", "attention_zoo", verb],
    }
    ConfigStore.instance().store(group="hydra/launcher", name="processes", node=node)
