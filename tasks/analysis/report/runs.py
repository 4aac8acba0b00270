"""Runs on disk: how each was composed, and how it ended."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.resolved_config import flatten
from attention_zoo.tasks.run_folder import (
    CONFIG,
    JOB_RECORD,
    RESULTS,
    JobRecord,
    RunFolder,
    first_sentence,
)

# Options that do not distinguish runs: where a run is written and how it is launched. Another seed
# makes another run of the same configuration.
NOT_COMPARED = (
    *("seed", "seeds", "paths", "logger", "hydra", "ckpt_path", "jobs", "fail_fast"),
    *("choices.logger", "choices.paths"),
)


@dataclass(frozen=True)
class Run:
    """A run on disk."""

    folder: Path
    config: Mapping[str, Any]  # empty, if the run ended before it was written
    results: Mapping[str, Any]  # empty, if there are none
    overrides: Sequence[str]  # the user's, of a job of a sweep
    outcome: str  # an `Outcome`, or unfinished
    reason: str  # why it was not trained
    seconds: float | None  # how long its process ran, if that is known

    @property
    def seed(self) -> int | None:
        """Return the seed, where it is known."""
        return self.results.get("seed", self.config.get("seed"))

    @property
    def short_reason(self) -> str:
        """Return the reason without further sentences, such as a list of legal choices."""
        return first_sentence(self.reason)

    @cached_property
    def options(self) -> dict[str, Any]:
        """Return the config without its seed, by flat keys such as `optimizer.lr`."""
        folder = str(self.config.get("paths", {}).get("run", self.folder))
        return {
            key: value.replace(folder, "") if isinstance(value, str) else value
            for key, value in flatten(self.config)
            if key not in NOT_COMPARED
            and key.partition(".")[0] not in NOT_COMPARED
            # `data.seed` is interpolated from the seed; a source's own seed is an option.
            and not (key.endswith(".seed") and key.count(".") == 1)
        }

    def outputs(self) -> list[dict[str, str]] | None:
        """Return what the model wrote for the test split; None if that was not kept."""
        return RunFolder(self.folder).read_outputs()


def run_names(runs: Sequence[Run]) -> list[str]:
    """Name each run by the overrides that not all runs have, else by its choices and its seed."""
    overrides = [{*run.overrides} for run in runs if run.overrides]
    shared = set.intersection(*overrides) if len(overrides) > 1 else set()
    names = []
    for run in runs:
        parts = [x for x in run.overrides if x not in shared]
        if not parts:
            choices = run.config.get("choices", {})
            parts = [f"{key}={choices[key]}" for key in ("attention", "position") if key in choices]
            parts += [] if run.seed is None else [f"seed={run.seed}"]
        names.append(" ".join(parts) or run.folder.name)
    return names


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Return all runs in the folders of sweeps or runs, however deep, each once.

    Raises:
        UserError: a folder does not exist, or holds no run; a file cannot be read.
    """
    runs: dict[Path, Run] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; give that of a sweep or of a run.")
        if not (paths := list(find_run_folders(folder))):
            raise UserError(
                f"There is no run in {folder}: no folder with {JOB_RECORD}, or with {CONFIG} and "
                f"{RESULTS}. Give the folder of a sweep, logs/<task>/multiruns/<time>, or of a run."
            )
        for path in paths:
            runs.setdefault(path.resolve(), read_run(path))
    return list(runs.values())


def find_run_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders of runs, in the order of their numbers; a run has no runs inside."""
    entries = {entry.name: entry for entry in os.scandir(folder)}
    if JOB_RECORD in entries or CONFIG in entries:
        yield folder
        return
    for name in sorted(entries, key=natural_key):
        # Hydra's own record of a job, .hydra, has a config.yaml too.
        if entries[name].is_dir(follow_symlinks=False) and not name.startswith("."):
            yield from find_run_folders(folder / name)


def natural_key(name: str) -> list[int | str]:
    """Return a key that sorts the numbers in names as numbers: 2 before 10."""
    parts = re.split(r"(\d+)", name)  # text and numbers by turns, text first
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def read_run(path: Path) -> Run:
    """Read the run in a folder; without a job's record, judge how it ended by its results."""
    folder = RunFolder(path)
    results, record = folder.read_results(), folder.read_job()
    if record is None:
        record = JobRecord(outcome="trained" if results else "waiting")
        if loss := results.get("not_finite", {}).get("val/loss"):
            record.outcome, record.reason = "diverged", f"val/loss is {loss}"
        if cause := results.get("diverged"):
            record.outcome, record.reason = "diverged", cause
    outcome, reason = str(record.outcome), record.reason
    if outcome == "trained" and not results:
        outcome, reason = "failed", f"it left no {RESULTS}"
    if outcome == "waiting":
        outcome, reason = "unfinished", "it is running, or was cut off"
    config = folder.read_config()
    return Run(path, config, results, record.overrides, outcome, reason, record.seconds)
