"""What lies in the folders of runs: how each was composed, and what came of it."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from attention_zoo.errors import BadInput, UserError

CONFIG, RECORD, RESULTS, OUTPUTS = "config.yaml", "job.json", "results.json", "test_outputs.jsonl"
# Of the config, what makes no other run: where and how it is written down and launched. The seed
# makes another run, but of the same kind.
NOT_COMPARED = {
    *("seed", "seeds", "paths", "logger", "hydra", "ckpt_path", "jobs", "fail_fast"),
    *("choices.logger", "choices.paths"),
}


@dataclass(frozen=True)
class Run:
    """A folder that a run has left.

    Args:
        folder: where it lies.
        config: resolved, with `choices`; empty, where the run ended before it was written.
        results: `results.json`; empty, where there is none.
        words: the overrides that a sweep gave it.
        outcome: trained, refused, diverged, failed, killed, not run, or unfinished.
        reason: why it is not trained.
        seconds: how long its process ran, if that is known.
    """

    folder: Path
    config: Mapping[str, Any]
    results: Mapping[str, Any]
    words: Sequence[str]
    outcome: str
    reason: str
    seconds: float | None

    @property
    def seed(self) -> int | None:
        return self.results.get("seed", self.config.get("seed"))

    @cached_property
    def options(self) -> dict[str, Any]:
        """What runs are compared by: the config as flat keys, `optimizer.lr`, but for the seed."""
        run = str(self.config.get("paths", {}).get("run", self.folder))
        leaves = dict(flat(self.config))
        return {
            key: value.replace(run, "") if isinstance(value, str) else value
            for key, value in leaves.items()
            if key not in NOT_COMPARED
            and key.partition(".")[0] not in NOT_COMPARED
            # What is interpolated from the seed, as `data.seed`; not a seed of the data's own.
            and not (key.endswith(".seed") and key.count(".") == 1)
        }

    @property
    def cause(self) -> str:
        """The reason without the sentences behind it, such as all legal choices."""
        return self.reason.partition(". ")[0]

    def outputs(self) -> list[dict[str, str]] | None:
        """What the model wrote for the test sentences; None, where that was not kept."""
        path = self.folder / OUTPUTS
        if not path.exists():
            return None
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line]


def job_names(runs: Sequence[Run]) -> list[str]:
    """What their sweeps gave to some and not to all of them; else what they chose."""
    given = [{*run.words} for run in runs if run.words]
    shared = set.intersection(*given) if len(given) > 1 else set()
    names = []
    for run in runs:
        choices = run.config.get("choices", {})
        chosen = [f"{key}={choices[key]}" for key in ("attention", "position") if key in choices]
        words = [word for word in run.words if word not in shared] or [
            *chosen,
            *([] if run.seed is None else [f"seed={run.seed}"]),
        ]
        names.append(" ".join(words) or run.folder.name)
    return names


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """All runs in the folders of sweeps or runs, however deep, each once.

    Raises:
        UserError: a folder that is not there, or that holds no run; a file that cannot be read.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; give that of a sweep or of a run.")
        here = list(walk(folder))
        if not here:
            raise UserError(
                f"There is no run in {folder}: no folder with {RECORD}, or with {CONFIG} and "
                f"{RESULTS}. Give the folder of a sweep, logs/<task>/multiruns/<time>, or of a run."
            )
        for path in here:
            found.setdefault(path.resolve(), read_run(path))
    return list(found.values())


def walk(folder: Path) -> Iterator[Path]:
    """The folders of runs, in the order of their numbers; a run has no runs inside."""
    names = {entry.name: entry for entry in os.scandir(folder)}
    if RECORD in names or CONFIG in names:
        yield folder
        return
    for name in sorted(names, key=by_numbers):
        # Hydra's own record of a job, .hydra, has a config.yaml too.
        if names[name].is_dir(follow_symlinks=False) and not name.startswith("."):
            yield from walk(folder / name)


def by_numbers(name: str) -> list[tuple[bool, int, str]]:
    """Sorts 2 before 10, and words as words."""
    parts = re.split(r"(\d+)", name)
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def read_run(folder: Path) -> Run:
    from omegaconf import OmegaConf

    config: Any = {}
    if (folder / CONFIG).exists():
        config = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
    results, record = read_json(folder / RESULTS), read_json(folder / RECORD)
    outcome, reason = record.get("outcome"), record.get("reason", "")
    if outcome is None:
        outcome = "trained" if results else "unfinished"
        if "val/loss" in results.get("not_finite", {}):
            outcome, reason = "diverged", f"val/loss is {results['not_finite']['val/loss']}"
    if outcome == "trained" and not results:
        outcome, reason = "failed", f"it left no {RESULTS}"
    if outcome in ("waiting", "unfinished"):
        outcome, reason = "unfinished", "it is running, or was cut off"
    return Run(
        folder, config, results, record.get("overrides", ()), outcome, reason, record.get("seconds")
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty, if there is no file."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is not JSON ({error}); remove it, or run that job again.") from None


def flat(node: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts under dotted keys; lists are leaves, written as JSON."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", json.dumps(value) if isinstance(value, list) else value
