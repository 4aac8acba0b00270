"""Check the options of a comparison, and that its candidates can be compared, before it trains."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from attention_zoo.errors import UserError
from attention_zoo.tasks.comparison.plan import Schedule
from attention_zoo.tasks.comparison.rates import FURTHER, lowest_and_highest, smallest_ratio
from attention_zoo.tasks.configuration.overrides import train_yaml
from attention_zoo.tasks.configuration.resolved_config import flatten
from attention_zoo.tasks.run_folder import refuse_unwritable
from attention_zoo.tasks.sweeps.launcher import hash_job_config

TYPES: dict[str, Any] = {
    "trials": int,
    "option_trials": int,
    "seeds": int,
    "sizes": int,
    "jobs": int,
    "seed": int,
    "rate_factor": float,
    "reference": str | None,
    "suite": str | None,
    "scoreboard": str | None,
    "benchmark": str | None,
    "dry_run": bool,
    "hydra.sweep.dir": str,
}
SMALLEST = {
    "trials": FURTHER + 3,
    "option_trials": 0,
    "seeds": 3,
    "sizes": 1,
    "jobs": 1,
    "seed": 0,
}
MOST = 1000  # trials, seeds or sizes, each of which is a training
LARGEST_SEED = 2**32 - 1  # as NumPy takes them
# What would end trainings at another length than that of the plan.
ENDS = ("trainer.max_time", "trainer.min_steps", "trainer.min_epochs", "trainer.fast_dev_run")


def check_comparison_options(config: DictConfig) -> None:
    """Refuse values of the wrong type, or out of range, and folders that cannot be written."""
    # Imported here, as signatures need torch.
    from attention_zoo.tasks.configuration.option_checks import check_value

    for option, annotation in TYPES.items():
        value = OmegaConf.select(config, option)
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value)
        check_value(value, annotation, option)
        if value == "":
            raise UserError(f"{option} must not be empty.")
        if value is not None and value < SMALLEST.get(option, value):
            raise UserError(f"{option} must be at least {SMALLEST[option]}, got {value}.")
    for option in ("trials", "option_trials", "seeds", "sizes"):
        if config[option] > MOST:
            raise UserError(f"{option} must be at most {MOST}, got {config[option]}.")
    if config.seed + config.seeds > LARGEST_SEED:
        raise UserError(
            f"seed must leave room for {config.seeds} new seeds up to {LARGEST_SEED}, got "
            f"{config.seed}."
        )
    if not (config.rate_factor > 1 and math.isfinite(config.rate_factor)):
        raise UserError(f"rate_factor must be a finite number above 1, got {config.rate_factor}.")
    for option in ENDS:
        if OmegaConf.select(config, option):
            raise UserError(
                f"all trainings of a comparison have the length of its plan, got {option}="
                f"{OmegaConf.select(config, option)}; leave it out, or give budget=TIME."
            )
    if config.benchmark is not None:
        if config.scoreboard is None:
            raise UserError(
                f"benchmark={config.benchmark} names a column of a scoreboard: give "
                "scoreboard=FOLDER too."
            )
        if Path(config.benchmark).name != config.benchmark or config.benchmark.startswith("."):
            raise UserError(
                f"benchmark must be a name without slashes, got benchmark={config.benchmark}."
            )


def check_scoreboard(folder: Path) -> None:
    """Refuse a scoreboard that cannot be read or written, before hours of training."""
    from attention_zoo.tasks.comparison.scoreboard import read_scores

    with refuse_unwritable(folder, option="scoreboard"):
        (folder / "results").mkdir(parents=True, exist_ok=True)
        (folder / ".check").touch()
        (folder / ".check").unlink()
    read_scores(folder)


def check_rates(center: float, schedule: Schedule, factor: float) -> None:
    """Refuse a ladder of learning rates whose rates are not all different, above 0 and finite."""
    further = FURTHER + schedule.option_trials
    low, high = lowest_and_highest(center, schedule.trials - FURTHER, factor, further)
    if not (0 < low < high < math.inf):
        raise UserError(
            f"the learning rates around optimizer.lr={center:g} must be finite and above 0, got "
            f"{low:g} to {high:g} with trials={schedule.trials}, option_trials="
            f"{schedule.option_trials} and rate_factor={factor:g}."
        )
    # Rates whose ratio is larger are different when they have three digits.
    if smallest_ratio(factor, further) <= 1.01:
        raise UserError(
            "the rates must differ in three digits: take a larger rate_factor, such as 3, or fewer "
            f"option_trials, got rate_factor={factor:g} and option_trials="
            f"{schedule.option_trials}."
        )


def check_candidates(labels: Sequence[str], configs: Sequence[DictConfig]) -> None:
    """Refuse candidates that are the same, or that have other data, and wrong options of all."""
    first: dict[str, str] = {}
    for label, config in zip(labels, configs, strict=True):
        same = first.setdefault(hash_job_config(config), label)
        if same != label or labels.count(label) > 1:
            raise UserError(
                f"candidates must differ in what is trained, got {same} and {label} with the same "
                "config; leave one of them out."
            )
    flat = [dict(data_options(config)) for config in configs]
    for option in dict.fromkeys(key for each in flat for key in each):
        values = dict.fromkeys(str(each.get(option)) for each in flat)
        if len(values) > 1:
            raise UserError(
                f"all candidates must have the same data, got {option}={' and '.join(values)}; "
                "compare on each by itself, or with suite=FILE."
            )


def data_options(config: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yield the options that decide which data a candidate has, and in which order."""
    data: Any = OmegaConf.to_container(config.data, resolve=True)
    for name in ("task", "data"):
        yield name, config.hydra.runtime.choices.get(name)
    yield "data.seed", data.get("seed")
    source = data.get("source")
    yield from flatten({"data": {"source": source}} if source else {})


def complete_configs(
    combinations: Sequence[Sequence[str]], configs: Sequence[DictConfig], own: Sequence[str]
) -> list[dict[str, Any] | None]:
    """Return the complete config of each candidate, None for one that is refused.

    That one is left out later, with its reason. `own` are the options of the comparison, which its
    candidates do not have.

    Raises:
        UserError: the refusal of the first candidate if all are refused: then an option is wrong.
    """
    complete: list[dict[str, Any] | None] = []
    refusals: list[UserError] = []
    for overrides, config in zip(combinations, configs, strict=True):
        try:
            complete.append(complete_config_of_job(overrides, config, own))
        except UserError as error:
            complete.append(None)
            refusals.append(error)
    if len(refusals) == len(configs):
        raise refusals[0]
    return complete


def complete_config_of_job(
    overrides: Sequence[str], config: DictConfig, own: Sequence[str]
) -> dict[str, Any]:
    """Return the complete config of a training without the options `own` of another command."""
    from attention_zoo.tasks.configuration.completion import complete_config
    from attention_zoo.tasks.configuration.composition import Invocation

    plain: Mapping[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
    left_out = {"hydra", *own} - {*map(str, train_yaml())}
    single = OmegaConf.create({x: y for x, y in plain.items() if x not in left_out})
    with open_dict(single):
        single.paths.run, single.seeds = "run", None
    return complete_config(single, Invocation("train", "train", list(overrides)))[0]
