"""What a comparison runs: its candidates, and how long they train within a budget."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from attention_zoo.errors import UserError
from attention_zoo.tasks.analysis.report.measures import format_with_unit
from attention_zoo.tasks.views.console import print_line
from attention_zoo.tasks.views.tables import Table, print_table

MEASURED_STEPS = 20
# The shortest training at full length; a trial is a quarter of it.
FEWEST_STEPS = 40
SECONDS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
KINDS = {"token": "tokens", "tokens": "tokens", "flop": "flops", "flops": "flops"}


@dataclass(frozen=True)
class Budget:
    """An amount of seconds, target tokens or training FLOPs, for the whole comparison."""

    amount: float
    kind: str  # "seconds", "tokens" or "flops"


@dataclass(frozen=True)
class Cost:
    """What a candidate costs, as a short training of it has shown."""

    seconds: float  # of a step
    overhead: float  # seconds of a run besides its steps
    tokens: float  # of a step
    flops: float  # of a step

    @classmethod
    def of_run(cls, results: dict[str, Any], seconds: float) -> "Cost":
        """Return the cost that the results of a short run show; `seconds` is all that it took."""
        training = results["tokens_seen"] / max(results["tokens_per_second"], 1e-9)
        tokens = results["tokens_seen"] / results["steps"]
        return cls(
            training / results["steps"],
            max(0.0, seconds - training),
            tokens,
            tokens * results["training_flops_per_token"],
        )


@dataclass(frozen=True)
class Schedule:
    """The trainings of each candidate.

    Args:
        trials: rates that are tried, for a quarter of the full length.
        option_trials: options that are tried for as long, or further rates.
        seeds: of the best setting, at full length.
    """

    trials: int
    option_trials: int
    seeds: int

    @property
    def settings(self) -> int:
        """Return how many settings are tried."""
        return self.trials + self.option_trials

    @property
    def kept(self) -> int:
        """Return how many settings go on to full length."""
        return max(2, self.settings // 4)

    @property
    def runs(self) -> int:
        """Return the number of trainings."""
        return self.settings + self.kept + self.seeds

    @property
    def lengths(self) -> float:
        """Return the sum of the trainings, in full lengths."""
        return self.settings / 4 + self.kept + self.seeds


def parse_budget(text: Any) -> Budget:
    """Read a budget such as `90min`, `5e7 tokens` or `1e15 flops`."""
    match = re.fullmatch(r"([\d.]+(?:e\+?\d+)?)\s*([a-z]+)", str(text).strip().lower())
    if match is not None:
        number, unit = match.groups()
        try:
            amount = float(number)
        except ValueError:
            amount = 0.0
        is_amount = 0 < amount * SECONDS.get(unit, 1) < math.inf
        if is_amount and unit in SECONDS:
            return Budget(amount * SECONDS[unit], "seconds")
        if is_amount and unit in KINDS:
            return Budget(amount, KINDS[unit])
    raise UserError(
        "budget must be a time, a number of target tokens or of FLOPs, such as 2h, 30min, "
        f"'5e7 tokens' or '1e15 flops', got {text!r}."
    )


def steps_within(budget: Budget, costs: Sequence[Cost], schedule: Schedule, *, jobs: int) -> int:
    """Return the steps of a training at full length, the same for all candidates.

    `jobs` are run at a time. Raise UserError if there are too few.
    """
    available = budget.amount
    if budget.kind == "seconds":
        available = available * jobs - schedule.runs * sum(cost.overhead for cost in costs)
    of_step = sum(getattr(cost, budget.kind) for cost in costs)
    steps = int(available / (schedule.lengths * of_step))
    if steps < FEWEST_STEPS:
        raise UserError(
            f"the budget must allow {FEWEST_STEPS} steps at full length, got {max(0, steps)} for "
            f"{len(costs)} candidates with {schedule.runs} trainings each; raise budget, or take "
            "fewer candidates or trials."
        )
    return steps


def expected_seconds(steps: int, costs: Sequence[Cost], schedule: Schedule, *, jobs: int) -> float:
    """Return how long a comparison takes."""
    training = sum(schedule.lengths * steps * cost.seconds for cost in costs)
    return (training + schedule.runs * sum(cost.overhead for cost in costs)) / jobs


def print_plan(
    console: Console,
    names: Sequence[str],
    costs: Sequence[Cost],
    schedule: Schedule,
    steps: int,
    seconds: float,
    noise: str,
) -> None:
    """Print what a comparison will run, what that costs, and what it can show.

    It takes some seconds; `noise` is the sentence about the latter.
    """
    runs = [
        ["first rates and two more", str(schedule.trials), f"{steps // 4:,}"],
        ["options, or further rates", str(schedule.option_trials), f"{steps // 4:,}"],
        ["the best of them", str(schedule.kept), f"{steps:,}"],
        ["the best one, with new seeds", str(schedule.seeds), f"{steps:,}"],
    ]
    runs = [row for row in runs if row[1] != "0"]
    print_table(console, Table("Each candidate", ["trainings", "number", "steps"], runs))
    rows = [
        [
            name,
            f"{cost.seconds:.3f}",
            f"{cost.overhead:.0f}",
            format_with_unit(schedule.lengths * steps * cost.tokens, "count"),
            format_with_unit(schedule.lengths * steps * cost.flops, "count"),
        ]
        for name, cost in zip(names, costs, strict=True)
    ]
    columns = ["candidate", "seconds/step", "seconds/run besides", "tokens", "FLOPs"]
    print_table(console, Table("Cost", columns, rows))
    count = len(names) * schedule.runs
    print_line(console, f"{count} trainings, about {describe_seconds(seconds)}.")
    print_line(console, noise)


def describe_seconds(seconds: float) -> str:
    """Return "45 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
