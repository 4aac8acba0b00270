"""The trainings of a comparison: jobs that Hydra's launcher runs, in a folder for each phase."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, open_dict
from rich.console import Console

from attention_zoo.tasks.run_folder import RunFolder
from attention_zoo.tasks.views.console import print_line
from attention_zoo.tasks.wording import pluralize

# What the runs in the folders of a comparison are for.
PHASES = {
    "cost": "What a step costs",
    "tuning": "Learning rates and options",
    "shortlist": "The best settings so far, at full length",
    "confirm": "The best setting, with new seeds",
}
TRIAL = ("test=false", "lengths=[]")  # It is judged by val/loss alone.
# The report has no pictures and samples of trials.
NO_PICTURES = ("++callbacks.attention_maps=null", "++callbacks.samples=null")


class Trainings:
    """Launches the jobs of a comparison, and numbers them through all phases."""

    def __init__(self, launcher: Launcher, config: DictConfig, console: Console) -> None:
        self.launcher, self.config, self.console = launcher, config, console
        self.hydra_overrides = [*config.hydra.overrides.hydra]
        self.next_number = 0

    @property
    def folder(self) -> Path:
        """Return the folder of the comparison."""
        return Path(self.config.hydra.sweep.dir)

    def run(self, phase: str, overrides: Sequence[Sequence[str]]) -> list[RunFolder]:
        """Run jobs in the folder of a phase; return their folders."""
        first, self.next_number = self.next_number, self.next_number + len(overrides)
        print_line(self.console, f"{PHASES[phase]}: {pluralize(len(overrides), 'run')}")
        subdir = f"{phase}/${{hydra.job.num}}"
        # As if the user had chosen it: launchers compose jobs and their folders anew.
        override = f"hydra.sweep.subdir='{subdir}'"
        with open_dict(self.config):
            self.config.hydra.sweep.subdir = subdir
            self.config.hydra.overrides.hydra = [*self.hydra_overrides, override]
        self.launcher.launch([*map(list, overrides)], initial_job_idx=first)
        numbers = range(first, self.next_number)
        return [RunFolder(self.folder / phase / str(number)) for number in numbers]


def length(steps: int) -> list[str]:
    """Return the overrides of a training of a number of steps, validated four times."""
    return [
        f"trainer.max_steps={steps}",
        "trainer.max_epochs=-1",
        f"trainer.val_check_interval={max(1, steps // 4)}",
        "trainer.check_val_every_n_epoch=null",  # The interval is that of all steps.
    ]


def trial_overrides(overrides: Iterable[str]) -> tuple[str, ...]:
    """Return what a trial leaves out: pictures and samples too, if no callbacks were given."""
    groups = {x.lstrip("+~").partition("=")[0].partition(".")[0] for x in overrides}
    return TRIAL if "callbacks" in groups else (*TRIAL, *NO_PICTURES)


def without(overrides: Iterable[str], name: str) -> list[str]:
    """Return the overrides but those of an option."""
    return [x for x in overrides if x.lstrip("+").partition("=")[0] != name]
