"""Every job of a sweep is a process of its own, whichever launcher of Hydra's starts it.

One process for all jobs would let loggers, random states and process groups leak from one into the
next, and a distributed job inside a sweep would start the sweep again. `hydra/launcher=processes`
is ours; in the places that other launchers choose, such as the tasks of a cluster, `run_alone` is
what they run.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, setup_globals
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.plugin import Plugin
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from attention_zoo.errors import UserError
from attention_zoo.tasks.sweeps.jobs import Job, Pool, WholeMachine, run_jobs, say, summary
from attention_zoo.tasks.training.results import fingerprint

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
        # Not in the constructor: Hydra would make an error of its own of it.
        require_count("jobs", self.slots)
        self.loader = hydra_context.config_loader
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from rich.console import Console

        setup_globals()
        console = Console()
        words = [filter_overrides(overrides) for overrides in job_overrides]
        # Of a search, a job may be launched by itself.
        shared = set.intersection(*map(set, words)) if len(words) > 1 else set()
        shared |= {*self.config.hydra.overrides.task}
        jobs = [
            Job(
                number=number,
                overrides=overrides,
                words=own,
                label=" ".join([word for word in own if word not in shared] or own),
                run=self.folder(number),
            )
            for number, (overrides, own) in enumerate(
                zip(job_overrides, words, strict=True), start=initial_job_idx
            )
        ]
        self.restore(jobs, console)
        try:
            run_jobs(
                self.composed(job for job in jobs if not job.finished),
                command=[*self.command, *said_of_hydra(self.config.hydra)],
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

    def restore(self, jobs: Sequence[Job], console: Any) -> None:
        """Take up what an earlier launch over the same folder came to.

        Raises:
            UserError: its jobs were composed from something else.
        """
        earlier = [job for job in jobs if job.record]
        for job in self.composed(earlier):
            restore(job)
        done = sum(job.finished for job in earlier)
        if earlier:
            console.print(
                f"{done} of {len(jobs)} jobs have their result already; the others run.",
                highlight=False,
            )

    def composed(self, jobs: Iterator[Job] | Sequence[Job]) -> Iterator[Job]:
        """Each job, once it is known what it is composed of and which devices it wants."""
        for job in jobs:
            # If it cannot be composed, its process will say what is wrong.
            with suppress(HydraException, OmegaConfBaseException):
                config = self.loader.load_sweep_config(self.config, list(job.overrides))
                plain: Any = OmegaConf.to_container(config, resolve=False)
                trainer = OmegaConf.select(config, "trainer") or {}
                job.fingerprint = fingerprint(plain, without=OF_THE_LAUNCH)
                job.accelerator = trainer.get("accelerator", "cpu")
                job.devices = trainer.get("devices", 1)
            yield job


def report_lengths(console: Any, jobs: Sequence[Job], folder: Path) -> None:
    """Where jobs were scored at several lengths: a table, and a picture in the sweep's folder."""
    metrics = {job.label or f"job {job.number}": job.metrics for job in jobs}
    scored = {label: found for label, found in metrics.items() if "lengths" in found}
    if scored:
        from attention_zoo.tasks.analysis.length_report import report_sweep

        report_sweep(console, scored, folder)


def restore(job: Job) -> None:
    """Take up what an earlier launch left of a job.

    Raises:
        UserError: the job was composed from something else then.
    """
    before = job.record
    if before and job.fingerprint != before["config"]:
        then, now = before["overrides"], job.words
        raise UserError(
            f"{job.run} was composed from something else: it had "
            f"{' '.join(x for x in then if x not in now) or 'the same overrides'}, and "
            f"now {' '.join(x for x in now if x not in then) or 'other values behind them'}"
            ". Go on with the command that began the sweep, or choose another "
            "hydra.sweep.dir."
        )
    job.restore()


def require_count(name: str, value: Any) -> None:
    """Raises: UserError, unless a value is a whole number of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{name} must be a whole number of at least 1, got {value!r}.")


def said_of_hydra(hydra: HydraConf) -> list[str]:
    """What was said of Hydra itself and holds for the jobs too; and the sweep that they are of."""
    return [*hydra.overrides.hydra, f"hydra.sweep.dir='{hydra.sweep.dir}'"]


def objective(job: Job) -> float | None:
    """What a search would minimise; None for a job that cannot be.

    Raises:
        UserError: the job failed.
    """
    if job.outcome not in ("trained", "refused"):
        raise UserError(f"job {job.number} {job.outcome}: {job.reason}")
    return job.metrics.get("val/loss")


def returned(job: Job) -> JobReturn:
    """What Hydra's sweepers ask of a job."""
    result = JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED)
    try:
        result.return_value = objective(job)
    except UserError as error:
        result.status = JobStatus.FAILED
        result.return_value = error
    return result


def launched_by_others() -> bool:
    """Whether this is a job of a sweep, run where a launcher that is not ours has put it."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def run_alone(
    config: DictConfig, *, command: Sequence[str], environment: Mapping[str, str]
) -> float | None:
    """Run the job of another launcher in a process of its own, as `processes` would.

    The process has all devices that are seen here. Where SLURM starts several tasks for the job,
    each is a rank, and the first one keeps the record.

    Args:
        config: what the job is composed of.
        command: what runs a job, followed by its overrides.
        environment: of the process.

    Returns:
        What a search would minimise.

    Raises:
        UserError: the job failed, an earlier one of its folder was composed from something else,
            or the launcher is asked for what only ours does.
    """
    from rich.console import Console

    hydra = HydraConfig.get()
    choices = hydra.runtime.choices
    if choices["hydra/sweeper"] == "basic" and (config.jobs != 1 or config.fail_fast):
        raise UserError(
            f"jobs and fail_fast are for hydra/launcher=processes, got jobs={config.jobs} "
            f"fail_fast={config.fail_fast} with hydra/launcher={choices['hydra/launcher']}, whose "
            "own options, hydra.launcher, are shown by --cfg hydra."
        )
    plain: Any = OmegaConf.to_container(config, resolve=False)
    words = filter_overrides(hydra.overrides.task)
    job = Job(
        number=hydra.job.num,
        overrides=hydra.overrides.task,
        words=words,
        label=" ".join(words),
        run=Path(hydra.runtime.output_dir),
        fingerprint=fingerprint(plain, without=OF_THE_LAUNCH),
    )
    restore(job)
    command = [*command, *said_of_hydra(hydra)]
    if environment.get("SLURM_NTASKS") == "1":
        # Lightning takes each task of SLURM's for a rank, and would start no other.
        environment = {k: v for k, v in environment.items() if k != "SLURM_NTASKS"}
    console = Console()
    if job.finished:
        say(console, f"job {job.number} has its result already")
    elif environment.get("SLURM_PROCID", "0") != "0":
        subprocess.run(job.command_line(command), env=environment, check=False)
        return None
    else:
        run_jobs(
            iter([job]),
            command=command,
            environment=environment,
            pool=WholeMachine(),
            fail_fast=False,
            console=console,
        )
    return objective(job)


def command_of(verb: str, flags: Sequence[str]) -> list[str]:
    """What runs a job of a verb.

    Args:
        flags: those of Hydra's that say where configs are.
    """
    return [sys.executable, "-m", "attention_zoo", verb, *flags]


# Hydra instantiates plugins of the module `hydra_plugins` only. A real module of that name would
# be imported by every Hydra program of the environment; ours are registered when our program runs.
PLUGINS = "hydra_plugins.attention_zoo"


def register(plugin: type[Plugin], group: str, name: str, **options: Any) -> None:
    """Make `group=name` mean a plugin of ours, with the options that its constructor has."""
    # Hydra finds the class by importing what it calls itself.
    plugin.__module__ = PLUGINS
    if "hydra_plugins" not in sys.modules and find_spec("hydra_plugins") is None:
        sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
    setattr(sys.modules.setdefault(PLUGINS, ModuleType(PLUGINS)), plugin.__name__, plugin)
    Plugins.instance().register(plugin)
    node = {"_target_": f"{PLUGINS}.{plugin.__name__}", **options}
    ConfigStore.instance().store(group=group, name=name, node=node)


def register_launcher(verb: str, flags: Sequence[str] = ()) -> None:
    """Make `hydra/launcher=processes` known, for jobs of a verb.

    Args:
        flags: those of Hydra's that say where configs are.
    """
    ProcessesLauncher.environment = dict(os.environ)
    register(
        ProcessesLauncher,
        "hydra/launcher",
        "processes",
        command=command_of(verb, flags),
        jobs="${oc.select:jobs,1}",
        fail_fast="${oc.select:fail_fast,false}",
    )
