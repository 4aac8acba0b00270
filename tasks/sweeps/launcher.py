"""Every job of a sweep is a process of its own, whichever launcher of Hydra's starts it.

In one process for all jobs, loggers, random states and process groups would leak from a job into
the next, and a distributed job would start the whole sweep again. `hydra/launcher=processes` is
this project's launcher; under any other one, such as that of a cluster, `run_in_subprocess` runs
the job.
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
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
from rich.console import Console

from attention_zoo.errors import Unsupported, UserError
from attention_zoo.tasks.configuration.resolved_config import hash_config
from attention_zoo.tasks.run_folder import JobRecord, RunFolder, going_on_without
from attention_zoo.tasks.sweeps.jobs import Job
from attention_zoo.tasks.sweeps.scheduling import DevicePool, outcome_table, run_jobs
from attention_zoo.tasks.views.console import print_line
from attention_zoo.tasks.views.tables import print_table
from attention_zoo.tasks.wording import pluralize

# Options that may differ when a job is run again: they do not change what it trains.
LAUNCH_OPTIONS = ("hydra", "paths", "logger", "ckpt_path", "overwrite", "jobs", "fail_fast")


class ProcessesLauncher(Launcher):
    """Runs jobs as devices allow, and prints a table of how they ended.

    A job that is refused or that fails does not stop the others, unless `fail_fast`. Launched again
    over the same folder, it runs the jobs that have no result yet, from their last checkpoints. On
    the CPU `jobs` of them run at a time; `command` is what the overrides of a job are added to.
    """

    environment: ClassVar[dict[str, str]] = {}  # that of the user, without what Hydra is set by

    def __init__(self, command: list[str], jobs: int = 1, fail_fast: bool = False) -> None:
        self.command = command
        self.cpu_slots = jobs
        self.fail_fast = fail_fast
        self.is_quiet = False  # The output of jobs goes to their logs, and no table is printed.

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        # Not in the constructor, whose errors Hydra wraps in its own.
        require_count("jobs", self.cpu_slots)
        self.loader = hydra_context.config_loader
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        setup_globals()
        console = Console()
        jobs = self.create_jobs(job_overrides, initial_job_idx)
        earlier = [job for job in jobs if job.folder.job_file.exists()]
        for job in self.compose_jobs(earlier):
            job.restore()
        if earlier:
            final = sum(job.record.is_final for job in earlier)
            others = "; the others run" if final < len(jobs) else ""
            text = f"{final} of {pluralize(len(jobs), 'job')} have their result already{others}."
            print_line(console, text)
        try:
            run_jobs(
                self.compose_jobs(job for job in jobs if not job.record.is_final),
                command=[*self.command, *hydra_overrides(self.config.hydra)],
                environment=self.environment,
                pool=DevicePool(self.cpu_slots),
                fail_fast=self.fail_fast,
                console=console,
                use_terminal=not self.is_quiet,
            )
        finally:
            for job in jobs:
                if job.record.outcome == "waiting":
                    job.record.outcome = "not run"
            if not self.is_quiet:
                self.print_outcome(jobs, console)
        # A search asks for one trial after another, and a refused one is no failure of the search.
        is_search = self.config.hydra.runtime.choices["hydra/sweeper"] != "basic"
        if not is_search and all(job.record.outcome == "refused" for job in jobs):
            raise Unsupported(f"every job of {len(jobs)} was refused; the table says why.")
        return [job_return(job) for job in jobs]

    def print_outcome(self, jobs: Sequence[Job], console: Console) -> None:
        """Print a table of the jobs, and what `lengths` has found."""
        sweep = Path(self.config.hydra.sweep.dir)
        print_table(console, outcome_table(jobs))
        results = {job.name or f"job {job.number}": job.folder.read_results() for job in jobs}
        if scored := {name: x for name, x in results.items() if "lengths" in x}:
            # Imported here, as pictures need matplotlib.
            from attention_zoo.tasks.analysis.length_report import report_sweep

            with going_on_without(sweep):
                report_sweep(console, scored, sweep)
        console.print(f"Sweep: {sweep}", soft_wrap=True)

    def create_jobs(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Job]:
        """Return a job for each list of overrides, numbered from `first`."""
        user_overrides = [filter_overrides(overrides) for overrides in job_overrides]
        # A search may launch one job at a time.
        shared = set.intersection(*map(set, user_overrides)) if len(user_overrides) > 1 else set()
        shared |= {*self.config.hydra.overrides.task}
        jobs, hydra = [], self.config.hydra
        for number, overrides in enumerate(user_overrides, start=first):
            name = " ".join([x for x in overrides if x not in shared] or overrides)
            with open_dict(self.config):
                hydra.job.num = number  # which the name of the folder holds
            folder = RunFolder(Path(hydra.sweep.dir) / str(hydra.sweep.subdir))
            process_overrides, record = job_overrides[number - first], JobRecord(overrides)
            jobs.append(Job(number, process_overrides, name, folder, record))
        return jobs

    def compose_jobs(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Compose the config of each job, for its hash and the devices that it asks for."""
        for job in jobs:
            # If it cannot be composed, its process reports why.
            with suppress(HydraException, OmegaConfBaseException):
                config = self.loader.load_sweep_config(self.config, list(job.overrides))
                trainer = OmegaConf.select(config, "trainer") or {}
                job.record.config_hash = hash_job_config(config)
                job.accelerator = trainer.get("accelerator", "cpu")
                job.devices = trainer.get("devices", 1)
            yield job


def require_count(name: str, value: Any) -> None:
    """Refuse what is not a whole number of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{name} must be a whole number of at least 1, got {value!r}.")


def hash_job_config(config: DictConfig) -> str:
    """Return the hash of what a job trains: of its config without the launch's options."""
    container: Any = OmegaConf.to_container(config, resolve=False)
    return hash_config(container, without=LAUNCH_OPTIONS)


def hydra_overrides(hydra: HydraConf) -> list[str]:
    """Return the overrides of Hydra's own options, which hold for the jobs too, and the sweep's."""
    return [*hydra.overrides.hydra, f"hydra.sweep.dir='{hydra.sweep.dir}'"]


def objective(job: Job) -> float | None:
    """Return what a search minimises, None for a job that was refused; raise that it failed."""
    if job.record.outcome not in ("trained", "refused"):
        raise UserError(f"job {job.number} {job.record.outcome}: {job.record.reason}")
    return job.folder.read_results().get("val/loss")


def job_return(job: Job) -> JobReturn:
    """Return a job's objective or error, as Hydra's sweepers expect it."""
    result = JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED)
    try:
        result.return_value = objective(job)
    except UserError as error:
        result.status, result.return_value = JobStatus.FAILED, error
    return result


def is_launched_by_other() -> bool:
    """Return whether another launcher than this project's runs this job of a sweep."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def run_in_subprocess(
    config: DictConfig, *, command: Sequence[str], environment: Mapping[str, str]
) -> float | None:
    """Run the job of another launcher in a process of its own, and return its objective.

    The process has all devices that this one sees. If SLURM starts several tasks for the job, each
    is a rank, and the first one keeps the record.
    """
    hydra = HydraConfig.get()
    choices = hydra.runtime.choices
    if choices["hydra/sweeper"] == "basic" and (config.jobs != 1 or config.fail_fast):
        raise UserError(
            f"jobs and fail_fast are for hydra/launcher=processes, got jobs={config.jobs} "
            f"fail_fast={config.fail_fast} with hydra/launcher={choices['hydra/launcher']}, whose "
            "own options, hydra.launcher, are shown by --cfg hydra."
        )
    overrides = filter_overrides(hydra.overrides.task)
    job = Job(
        number=hydra.job.num,
        overrides=hydra.overrides.task,
        name=" ".join(overrides),
        folder=RunFolder(hydra.runtime.output_dir),
        record=JobRecord(overrides=overrides, config_hash=hash_job_config(config)),
    )
    job.restore()
    command = [*command, *hydra_overrides(hydra)]
    if environment.get("SLURM_NTASKS") == "1":
        # Lightning takes each of SLURM's tasks for a rank, and would start no other.
        environment = {k: v for k, v in environment.items() if k != "SLURM_NTASKS"}
    console = Console()
    if job.record.is_final:
        print_line(console, f"job {job.number} has its result already")
    elif environment.get("SLURM_PROCID", "0") != "0":
        subprocess.run(job.command_line(command), env=environment, check=False)
        return None
    else:
        run_jobs(
            iter([job]),
            command=command,
            environment=environment,
            pool=DevicePool(cpu_slots=1),  # A single job: it has all devices that there are here.
            fail_fast=False,
            console=console,
            use_terminal=False,
        )
    return objective(job)


def job_command(command: str, flags: Sequence[str]) -> list[str]:
    """Return the argv of a command; `flags` are Hydra's, for the sources of configs."""
    return [sys.executable, "-m", "attention_zoo", command, *flags]


def register_plugin(plugin: type[Plugin], group: str, name: str, **options: Any) -> None:
    """Make `group=name` choose a plugin of this project.

    Hydra looks plugins up by name, under `hydra_plugins` only. A package of that name would be
    imported by every Hydra program of the environment; an entry in Hydra's table is our program's.
    """
    target = f"hydra_plugins.attention_zoo.{plugin.__name__}"
    Plugins.instance().register(plugin)  # for --info plugins
    Plugins.instance().class_name_to_class[target] = plugin
    ConfigStore.instance().store(group=group, name=name, node={"_target_": target, **options})


def register_launcher(command: str, flags: Sequence[str] = ()) -> None:
    """Make `hydra/launcher=processes` run jobs of a command; see `job_command` for the flags."""
    ProcessesLauncher.environment = dict(os.environ)
    options = {"jobs": "${oc.select:jobs,1}", "fail_fast": "${oc.select:fail_fast,false}"}
    argv = job_command(command, flags)
    register_plugin(ProcessesLauncher, "hydra/launcher", "processes", command=argv, **options)
