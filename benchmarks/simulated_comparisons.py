"""How often `attention-zoo compare` is wrong, and what it finds, in simulated comparisons.

python benchmarks/simulated_comparisons.py [--comparisons 1000] [--output FILE]

The sweeper, its plan, its choice of rates and its tests are the real ones. A launcher that computes
losses by a formula takes the place of training, and no page is drawn.
"""

import argparse
import copy
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from attention_zoo.tasks.analysis.report.comparison import Comparison, Row
from attention_zoo.tasks.analysis.report.runs import Run, find_runs
from attention_zoo.tasks.analysis.report.significance import run_tests
from attention_zoo.tasks.comparison.answer import CONFIRM, compare_widths
from attention_zoo.tasks.comparison.candidate import Candidate
from attention_zoo.tasks.comparison.noise import nearest_noise
from attention_zoo.tasks.comparison.sweeper import ComparisonSweeper
from attention_zoo.tasks.configuration.composition import parse_command
from attention_zoo.tasks.run_folder import JobRecord, RunFolder
from attention_zoo.tasks.views.tables import Table, markdown_table

DATA, DIM, STEPS = "python_docs", 64, 300
CENTER = 0.004  # of the rates that are tried
NAMES = (
    *("multi_head", "linear", "delta", "gated_delta", "retention", "taylor", "hedgehog", "hgrn2"),
    *("mlstm", "rwkv7", "cosformer", "gated", "sliding_window", "top_k", "performer", "forgetting"),
    *("differential", "gated_linear", "gated_slot", "kimi_delta"),
)
ROWS_AND_SEEDS = ((2, 3), (2, 5), (2, 10), (5, 3), (5, 5), (20, 3), (20, 5))

INTRODUCTION = """# Simulated comparisons

How often `attention-zoo compare` is wrong, and what it finds: {comparisons} simulated comparisons
for each chance of an error, half as many for each power. This command makes the page:
`python benchmarks/simulated_comparisons.py --comparisons {comparisons} --output
benchmarks/simulated_comparisons.md`

The rates, the halving, the confirming runs, the plan and the tests are those of the command. Only
the training is a formula:

    loss = lowest + curvature · ln(rate / best rate)² + noise

The noise is normal, with the spread over seeds that was measured on `data={data}`, {spread} nats.
It is drawn anew for each training. Above ten times the best rate, training diverges. For each
comparison, the best rate is drawn within a factor of 3 of the middle of the rates that are tried,
and the curvature between 0.5 and 50 spreads.

Options that the card of a candidate names are tried, and change nothing: their trials are further
draws at the best rate. Candidates without options get further rates.

## Errors and power

- *Same model*: all candidates have the same curve. The chance that any row is called different from
  the best one is to be 0.05 at most.
- *Reference*: the same, if `reference` names the first candidate.
- *Hardest curve*: as *same model*, with a curve on which luck decides most between neighbouring
  rates: a curvature of {hardest:g} spreads, and a best rate that is among those tried.
- *Seeds alone*: what the hardest curve would give if the tests did not add the variance of tuning.
- *Announced*: the difference, in nats, that the plan promises to show with a probability of 0.8.
- *Power*: how often a certain candidate is found to be worse, if the first is the best and all
  others are worse by the announced difference. Each has a curve of its own.

"""
LAUNCHES = """
## Two launches

The candidates are launched twice, with other seeds. Their lowest losses are drawn with half the
announced difference as standard deviation, and each has a curve of its own. *Found* counts the
differences from the best row that the first launches call significant. *Confirmed* is the share of
them that the second launch calls significant with the same sign, *reversed* the share with the
other sign. *Wrong sign* is the share whose sign is not that of the true difference. The second
launch tests differences from its own best row only, which may be another one.

"""
TASKS = """
## Seeds that solve a task or do not

The exact match of diagnostics can be near 0 or near 1, as some seeds solve the task. Here, each
training of any candidate solves it with a probability of one half. Three seeds that agree by luck
have hardly any spread, so the test takes them for certain: the chance that any row is called
different exceeds 0.05 where many candidates have few seeds.

"""
HARDEST = 7.0  # curvature, in spreads over seeds


@dataclass(frozen=True)
class Curve:
    """The loss that a candidate comes to at a learning rate."""

    lowest: float
    best_rate: float
    curvature: float

    def loss(self, rate: float) -> float:
        """Return the loss without noise; infinity where training diverges."""
        if rate > 10 * self.best_rate:
            return math.inf
        return self.lowest + self.curvature * math.log(rate / self.best_rate) ** 2


class SimulatedLauncher:
    """Writes what trainings leave, with losses of curves that are set for each comparison."""

    def __init__(self, config: DictConfig, spread: float) -> None:
        self.config, self.spread = config, spread
        self.curves: Mapping[str, Curve] = {name: Curve(3.0, CENTER, 1.0) for name in NAMES}
        self.generator = np.random.default_rng(0)
        self.solves = False  # whether trainings have an exact match, near 0 or near 1

    def launch(self, job_overrides: Sequence[list[str]], initial_job_idx: int) -> None:
        """Write a folder for each job."""
        sweep: Any = OmegaConf.to_container(self.config.hydra.sweep, resolve=False)
        phase = sweep["subdir"].partition("/")[0]  # phase/${hydra.job.num}
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            self.write_run(RunFolder(f"{sweep['dir']}/{phase}/{number}"), overrides)

    def write_run(self, folder: RunFolder, overrides: list[str]) -> None:
        """Write the record, the config and the results of a training."""
        options = dict(x.split("=", 1) for x in overrides)
        name, rate = options["attention"], float(options.get("optimizer.lr", CENTER))
        loss = self.curves[name].loss(rate)
        folder.path.mkdir(parents=True)
        if math.isinf(loss):
            folder.write_job(JobRecord(overrides, outcome="diverged", reason="loss is nan"))
            return
        loss += self.generator.normal(0, self.spread)
        steps = int(options["trainer.max_steps"])
        folder.write_job(JobRecord(overrides, outcome="trained", seconds=60.0))
        choices = {"task": "language_modeling", "data": DATA, "attention": name}
        config = {
            "choices": choices,
            "optimizer": {"lr": rate},
            "seed": int(options.get("seed", 1)),
        }
        folder.config_file.write_text(json.dumps(config))  # JSON is YAML, and quicker to write.
        cost = {"tokens_seen": 1000 * steps, "tokens_per_second": 1e4, "steps": steps}
        cost["training_flops_per_token"] = 1e6
        metrics = {"val/loss": loss, "test/loss": loss}
        if self.solves:
            is_solved, distance = self.generator.random() < 0.5, self.generator.uniform(0, 0.02)
            metrics["test/exact_match"] = 1 - distance if is_solved else distance
        folder.write_results(metrics, cost)


class SimulatedComparison:
    """A comparison that is planned once, and run with different curves.

    Args:
        rows: how many candidates are compared.
        seeds: how many runs confirm the best rate of each.
    """

    def __init__(self, rows: int, seeds: int) -> None:
        noise = nearest_noise(DATA, dim=DIM, steps=STEPS)
        assert noise is not None
        self.spread, self.names = noise.spread, NAMES[:rows]
        invocation = parse_command(
            "compare",
            [
                *(f"attention={','.join(self.names)}", f"data={DATA}", f"model.dim={DIM}"),
                *(f"trainer.max_steps={STEPS}", f"seeds={seeds}", f"optimizer.lr={CENTER}"),
            ],
        )
        with (
            initialize_config_module("attention_zoo.conf", version_base="1.3"),
            TemporaryDirectory() as folder,
        ):
            loader = GlobalHydra.instance().config_loader()
            config = loader.load_configuration(
                invocation.config_name,
                [*invocation.overrides[1:], f"hydra.sweep.dir={folder}"],
                run_mode=RunMode.MULTIRUN,
            )
            self.launcher = SimulatedLauncher(config, self.spread)
            self.sweeper = ComparisonSweeper(config.hydra.sweeper.own_options)
            context = HydraContext(config_loader=loader, callbacks=None)
            with patch.object(Plugins, "instantiate_launcher", lambda *_, **__: self.launcher):
                self.sweeper.setup(hydra_context=context, task_function=None, config=config)
            text = io.StringIO()
            self.sweeper.console = Console(file=text, width=1000)
            self.sweeper.trainings.console = Console(quiet=True)
            self.candidates = self.sweeper.create_candidates([*config.hydra.overrides.task])
            self.sweeper.measure(self.candidates)
            self.steps = self.sweeper.plan(self.candidates, self.sweeper.read_plan())
        (announced,) = re.findall(r"a difference from the best of ([\d.]+) in", text.getvalue())
        self.announced = float(announced)

    def run(
        self, curves: Sequence[Curve], generator: np.random.Generator, *, solves: bool = False
    ) -> "Launch":
        """Tune and confirm candidates with these curves, with new noise.

        If `solves`, each training has an exact match, which is near 0 or near 1 by chance.
        """
        self.launcher.solves = solves
        self.launcher.curves = dict(zip(self.names, curves, strict=True))
        self.launcher.generator = generator
        candidates = copy.deepcopy(self.candidates)
        with TemporaryDirectory() as folder:
            self.sweeper.config.hydra.sweep.dir = folder
            self.sweeper.trainings.next_number = 0
            self.sweeper.tuner.tune(candidates, self.steps)
            self.sweeper.tuner.confirm(candidates, self.steps, first_seed=self.sweeper.seed + 1)
            return Launch(find_runs([Path(folder) / CONFIRM]), candidates)

    def random_curve(self, generator: np.random.Generator, lowest: float = 3.0) -> Curve:
        """Return a curve with a random best rate and curvature."""
        rate = CENTER * 3 ** generator.uniform(-1, 1)
        return Curve(lowest, rate, self.spread * 10 ** generator.uniform(-0.3, 1.7))


class Launch:
    """What a comparison says, read from its runs."""

    def __init__(self, runs: list[Run], candidates: list[Candidate]) -> None:
        self.runs, self.candidates = runs, candidates

    def differences(self, reference: str | None = None) -> set[tuple[str, str]]:
        """Return the pairs that are called significantly different, the better one first."""
        return significant_pairs(self.comparison(reference))

    def differences_of_seeds(self) -> set[tuple[str, str]]:
        """Return what `differences` would, if tests did not add the variance of tuning."""
        comparison = self.comparison()
        comparison.tuning_variance = 0.0
        run_tests(comparison, lambda: None)
        return significant_pairs(comparison)

    def comparison(self, reference: str | None = None) -> Comparison:
        """Return the tested comparison."""
        (comparison,) = compare_widths(self.runs, self.candidates, reference)
        return comparison


def significant_pairs(comparison: Comparison) -> set[tuple[str, str]]:
    """Return the names of rows that are called different from the reference, the better first."""

    def name(row: Row) -> str:
        return str(row.options["choices.attention"])

    return {
        (name(comparison.reference), name(row))[:: 1 if (test.delta or 0.0) > 0 else -1]
        for row, test in comparison.differences[comparison.primary_metric.key].items()
        if test.significant
    }


def false_alarms(
    simulated: SimulatedComparison, generator: np.random.Generator, count: int
) -> list[float]:
    """Return how often any row is called different, of candidates that are the same model.

    The values are for random curves, for a named reference, and for the hardest curve with and
    without the variance of tuning.
    """
    alarms, rows = np.zeros(4), len(simulated.names)
    hardest = Curve(3.0, 3 * CENTER, HARDEST * simulated.spread)
    for _ in range(count):
        same = simulated.run([simulated.random_curve(generator)] * rows, generator)
        hard = simulated.run([hardest] * rows, generator)
        found = [same.differences(), same.differences(simulated.names[0]), hard.differences()]
        alarms += [bool(x) for x in (*found, hard.differences_of_seeds())]
    return list(alarms / count)


def false_alarms_of_tasks(
    simulated: SimulatedComparison, generator: np.random.Generator, count: int
) -> float:
    """Return how often any row is called different, if half of the trainings solve their task."""
    alarms = 0
    for _ in range(count):
        same = [simulated.random_curve(generator)] * len(simulated.names)
        alarms += bool(simulated.run(same, generator, solves=True).differences())
    return alarms / count


def power(simulated: SimulatedComparison, generator: np.random.Generator, count: int) -> float:
    """Return how often a candidate is found that is worse by the announced difference."""
    best, worse = simulated.names[:2]
    lowest = [3.0] + [3.0 + simulated.announced] * (len(simulated.names) - 1)
    found = 0
    for _ in range(count):
        curves = [simulated.random_curve(generator, x) for x in lowest]
        found += (best, worse) in simulated.run(curves, generator).differences()
    return found / count


def repeat_launches(
    simulated: SimulatedComparison, generator: np.random.Generator, count: int
) -> list[int]:
    """Return how many differences first launches find, and how many of them are confirmed.

    Then come how many are reversed by second launches, and how many have the wrong sign.
    """
    totals = np.zeros(4, int)
    for _ in range(count):
        lowest = generator.normal(3.0, simulated.announced / 2, len(simulated.names))
        curves = [simulated.random_curve(generator, x) for x in lowest]
        first, second = (simulated.run(curves, generator).differences() for _ in range(2))
        truth = dict(zip(simulated.names, lowest, strict=True))
        reversed_pairs = {(worse, better) for better, worse in second}
        mistaken = [x for x in first if truth[x[0]] > truth[x[1]]]
        totals += [len(first), len(first & second), len(first & reversed_pairs), len(mistaken)]
    return totals.tolist()


def simulate(setting: tuple[int, int], count: int) -> list[list[str]]:
    """Return the lines of the three tables for numbers of candidates and of seeds."""
    simulated, generator = SimulatedComparison(*setting), np.random.default_rng(setting)
    head = [str(x) for x in setting]
    alarms = false_alarms(simulated, generator, count)
    share = power(simulated, generator, count // 2)
    found, *others = repeat_launches(simulated, generator, count // 4)
    of_tasks = false_alarms_of_tasks(simulated, generator, count)
    return [
        [*head, *(f"{x:.3f}" for x in alarms), f"{simulated.announced:.4f}", f"{share:.2f}"],
        [*head, str(found), *(f"{x / max(1, found):.3f}" for x in others)],
        [*head, f"{of_tasks:.3f}"],
    ]


def make_page(count: int, lines: Sequence[Sequence[list[str]]]) -> str:
    """Return the page; `lines` are those of each setting."""
    noise = nearest_noise(DATA, dim=DIM, steps=STEPS)
    assert noise is not None
    titles = [
        ["same model", "reference", "hardest curve", "seeds alone", "announced", "power"],
        ["found", "confirmed", "reversed", "wrong sign"],
        ["same model"],
    ]
    errors, launches, tasks = (
        markdown_table(Table("", ["candidates", "seeds", *columns], list(rows)))
        for columns, rows in zip(titles, zip(*lines, strict=True), strict=True)
    )
    introduction = INTRODUCTION.format(
        comparisons=count, data=DATA, spread=noise.spread, hardest=HARDEST
    )
    return f"{introduction}{errors}\n{LAUNCHES}{launches}\n{TASKS}{tasks}\n"


def main() -> None:
    """Simulate the comparisons, and print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--comparisons", type=int, default=1000)
    parser.add_argument("--output", type=Path, help="write the page to this file")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    count = arguments.comparisons
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        # The longest come first.
        tasks = [pool.submit(simulate, x, count) for x in reversed(ROWS_AND_SEEDS)]
        for _ in track(as_completed(tasks), "simulating", total=len(tasks)):
            pass
        page = make_page(count, [x.result() for x in reversed(tasks)])
    if arguments.output is None:
        print(page)
    else:
        arguments.output.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
