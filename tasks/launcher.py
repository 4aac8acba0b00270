"""`hydra/launcher=processes`: every job of a sweep is a process of its own.

One process for all jobs would let loggers, random states and process groups leak from one into the
next, and a distributed job inside a sweep would start the sweep again.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, setup_globals
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from attention_zoo.errors import UserError
from attention_zoo.tasks.results import fingerprint
from attention_zoo.tasks.sweeps import Job, Pool, run_jobs, summary

# What a job may be run again with: it does not change what the job is.
OF_THE_LAUNCH = ("hydra", "paths", "logger", "ckpt_path", "jobs", "fail_fast")


class ProcessesLauncher(Launcher):
    """Runs the jobs as devices allow, and says at the end how each one went.

    A job that is refused or that fails does not keep the others from running, unless `fail_fast`.
    Launched again over the same folder, it runs what has no result yet, from its last checkpoint.

    Args:
        command: what runs a job, followed by its overrides.
        jobs: how many run at a time on the CPU, each with its share of the threads.
        fail_fast: end the sweep with the first job that fails.
    """

    environment: ClassVar[dict[str, str]] = {}  # as the user set it

    def __init__(self, command: list[str], jobs: int = 1, fail_fast: bool = False) -> None:
        self.command = command
        self.slots = jobs
        self.fail_fast = fail_fast

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.loader = hydra_context.config_loader
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from rich.console import Console

        # Not in the constructor: Hydra would make an error of its own of it.
        if not isinstance(self.slots, int) or self.slots < 1:
            raise UserError(f"jobs must be a whole number of at least 1, got {self.slots!r}.")
        setup_globals()
        console = Console()
        words = [filter_overrides(overrides) for overrides in job_overrides]
        shared = set.intersection(*map(set, words)) if len(words) > 1 else set()
        jobs = [
            Job(
                number=number,
                overrides=overrides,
                words=own,
                label=" ".join(word for word in own if word not in shared),
                run=self.folder(number),
            )
            for number, (overrides, own) in enumerate(
                zip(job_overrides, words, strict=True), start=initial_job_idx
            )
        ]
        self.recall(jobs, console)
        try:
            run_jobs(
                self.composed(job for job in jobs if not job.finished),
                # What was said of Hydra itself, such as a search path, holds for the jobs too, and
                # so that a job knows the sweep that it is of, the folder.
                command=[
                    *self.command,
                    *self.config.hydra.overrides.hydra,
                    f"hydra.sweep.dir='{self.config.hydra.sweep.dir}'",
                ],
                environment=self.environment,
                pool=Pool(self.slots),
                fail_fast=self.fail_fast,
                console=console,
            )
        finally:
            for job in jobs:
                if job.outcome == "waiting":
                    job.outcome = "not run"
            console.print(summary(jobs))
            report_lengths(console, jobs, Path(self.config.hydra.sweep.dir))
            console.print(f"Sweep: {self.config.hydra.sweep.dir}", soft_wrap=True)
        return [returned(job) for job in jobs]

    def folder(self, number: int) -> Path:
        with open_dict(self.config):
            self.config.hydra.job.num = number
        return Path(self.config.hydra.sweep.dir) / str(self.config.hydra.sweep.subdir)

    def recall(self, jobs: Sequence[Job], console: Any) -> None:
        """Take up what an earlier launch over the same folder came to.

        Raises:
            UserError: its jobs were composed from something else.
        """
        earlier = [job for job in jobs if job.record]
        for job in self.composed(earlier):
            before = job.record
            if job.fingerprint != before["config"]:
                then, now = before["overrides"], job.words
                raise UserError(
                    f"{job.run} was composed from something else: it had "
                    f"{' '.join(x for x in then if x not in now) or 'the same overrides'}, and "
                    f"now {' '.join(x for x in now if x not in then) or 'other values behind them'}"
                    ". Go on with the command that began the sweep, or choose another "
                    "hydra.sweep.dir."
                )
            job.recall()
        done = sum(job.finished for job in earlier)
        if earlier:
            console.print(
                f"{done} of {len(jobs)} jobs have their result already; the others run.",
                highlight=False,
            )

    def composed(self, jobs: Iterator[Job] | Sequence[Job]) -> Iterator[Job]:
        """Each job, once it is known what it is composed of and which devices it wants."""
        for job in jobs:
            try:
                config = self.loader.load_sweep_config(self.config, list(job.overrides))
                plain: Any = OmegaConf.to_container(config, resolve=False)
                trainer = OmegaConf.select(config, "trainer") or {}
            except (HydraException, OmegaConfBaseException):
                yield job  # Its process will say what is wrong.
                continue
            job.fingerprint = fingerprint(plain, without=OF_THE_LAUNCH)
            job.accelerator = trainer.get("accelerator", "cpu")
            job.devices = trainer.get("devices", 1)
            yield job


def report_lengths(console: Any, jobs: Sequence[Job], folder: Path) -> None:
    """Where jobs were scored at several lengths: a table, and a picture in the sweep's folder."""
    metrics = {job.label or f"job {job.number}": job.metrics for job in jobs}
    scored = {label: found for label, found in metrics.items() if "lengths" in found}
    if scored:
        from attention_zoo.tasks.length_report import report_sweep

        report_sweep(console, scored, folder)


def returned(job: Job) -> JobReturn:
    """What Hydra's sweepers ask of a job. Its value is what an optimiser would minimise."""
    result = JobReturn(overrides=job.overrides)
    if job.outcome in ("trained", "refused"):
        result.status = JobStatus.COMPLETED
        result.return_value = job.metrics.get("val/loss")
    else:
        result.status = JobStatus.FAILED
        result.return_value = UserError(f"job {job.number} {job.outcome}: {job.reason}")
    return result


# Hydra instantiates launchers of the module `hydra_plugins` only. A real module of that name would
# be imported by every Hydra program of the environment; ours is registered when our program runs.
ProcessesLauncher.__module__ = "hydra_plugins.attention_zoo"


def register_launcher(verb: str, flags: Sequence[str] = ()) -> None:
    """Make `hydra/launcher=processes` known, for jobs of a verb.

    Args:
        flags: those of Hydra's that say where configs are.
    """
    Plugins.instance().register(ProcessesLauncher)
    # Hydra finds the class by importing what it calls itself.
    module = ProcessesLauncher.__module__
    if "hydra_plugins" not in sys.modules and find_spec("hydra_plugins") is None:
        sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
    sys.modules[module] = sys.modules[__name__]
    ProcessesLauncher.environment = dict(os.environ)
    node = {
        "_target_": f"{ProcessesLauncher.__module__}.{ProcessesLauncher.__name__}",
        "command": [sys.executable, "-m", "attention_zoo", verb, *flags],
        "jobs": "${oc.select:jobs,1}",
        "fail_fast": "${oc.select:fail_fast,false}",
    }
    ConfigStore.instance().store(group="hydra/launcher", name="processes", node=node)
