"""The procedure of `attention-zoo compare` with a formula in place of training.

The plan, the choice of rates and the tests are the real ones. Losses by a formula, kept in memory,
take the place of jobs and their folders, and no page is drawn.
"""

import copy
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig
from rich.console import Console

from attention_zoo.tasks.analysis.report.comparison import Comparison, Row
from attention_zoo.tasks.analysis.report.runs import Run
from attention_zoo.tasks.analysis.report.significance import run_tests
from attention_zoo.tasks.comparison.answer import compare_widths
from attention_zoo.tasks.comparison.candidate import Candidate
from attention_zoo.tasks.comparison.noise import nearest_noise
from attention_zoo.tasks.comparison.sweeper import ComparisonSweeper
from attention_zoo.tasks.comparison.trainings import Trainings
from attention_zoo.tasks.configuration.composition import parse_command
from attention_zoo.tasks.run_folder import JobRecord, RunFolder

DATA, DIM, STEPS = "python_docs", 64, 300
CENTER = 0.004  # of the rates that are tried
NAMES = (
    *("multi_head", "linear", "delta", "gated_delta", "retention", "taylor", "hedgehog", "hgrn2"),
    *("mlstm", "rwkv7", "cosformer", "gated", "sliding_window", "top_k", "performer", "forgetting"),
    *("differential", "gated_linear", "gated_slot", "kimi_delta"),
)
# How much the loss rises with z = ln(rate / best rate), for a curvature of 1.
SHAPES: Mapping[str, Callable[[float], float]] = {
    "parabola": lambda z: z**2,
    "quartic": lambda z: z**4,
    "pointed": abs,
    "cliff": lambda z: 4 * z if z > 0 else -0.15 * z,
    "steps": lambda z: (abs(z) > 0.3) + (abs(z) > 1),
}


@dataclass(frozen=True)
class Curve:
    """The loss that a candidate comes to at a learning rate."""

    lowest: float
    best_rate: float
    curvature: float
    shape: str = "parabola"
    noise: str = "normal"  # or "heavy tails", or "growing" with the distance from the best rate

    def loss(self, rate: float) -> float:
        """Return the loss without noise; infinity where training diverges."""
        if rate > 10 * self.best_rate:
            return math.inf
        return self.lowest + self.curvature * SHAPES[self.shape](math.log(rate / self.best_rate))

    def draw_noise(self, rate: float, spread: float, generator: np.random.Generator) -> float:
        """Return the noise of a training; `spread` is its standard deviation at the best rate."""
        if self.noise == "heavy tails":
            return spread * float(generator.standard_t(3)) / math.sqrt(3)
        if self.noise == "growing":
            factors = abs(math.log(rate / self.best_rate)) / math.log(3)
            spread *= min(8.0, 2**factors)
        return float(generator.normal(0, spread))


class SimulatedFolder(RunFolder):
    """The folder of a training that left its record and its results in memory."""

    def __init__(self, record: JobRecord, results: dict[str, Any]) -> None:
        super().__init__("simulated")
        self.record, self.results = record, results

    def read_job(self) -> JobRecord:
        """Return the record."""
        return self.record

    def read_results(self) -> dict[str, Any]:
        """Return the results; empty, if the training diverged."""
        return self.results

    def as_run(self) -> Run:
        """Return what a report reads of the training, but for the loss that its rate is chosen by.

        The other loss is the same, and testing both would take twice the time.
        """
        results = {key: x for key, x in self.results.items() if key != "val/loss"}
        options = dict(x.split("=", 1) for x in self.record.overrides)
        config = {
            "choices": dict(task="language_modeling", data=DATA, attention=options["attention"]),
            "optimizer": {"lr": float(options["optimizer.lr"])},
            "seed": int(options["seed"]),
        }
        overrides, outcome = self.record.overrides, self.record.outcome
        return Run(self.path, config, results, overrides, outcome, "", self.record.seconds)


class SimulatedTrainings(Trainings):
    """The trainings of a comparison, whose losses are those of curves."""

    def __init__(self, launcher: Launcher, config: DictConfig, spread: float) -> None:
        super().__init__(launcher, config, Console(quiet=True))
        self.spread = spread
        self.curves: Mapping[str, Curve] = {name: Curve(3.0, CENTER, 1.0) for name in NAMES}
        self.generator = np.random.default_rng(0)
        self.latest: list[SimulatedFolder] = []  # of the phase that ran last

    def run(self, phase: str, overrides: Sequence[Sequence[str]]) -> list[RunFolder]:
        """Return the folder of each job."""
        self.latest = [self.train([*x]) for x in overrides]
        return [*self.latest]

    def train(self, overrides: list[str]) -> SimulatedFolder:
        """Return the record and the results of a training."""
        options = dict(x.split("=", 1) for x in overrides)
        name, rate = options["attention"], float(options.get("optimizer.lr", CENTER))
        loss = self.curves[name].loss(rate)
        if math.isinf(loss):
            return SimulatedFolder(
                JobRecord(overrides, outcome="diverged", reason="loss is nan"), {}
            )
        loss += self.curves[name].draw_noise(rate, self.spread, self.generator)
        steps = int(options["trainer.max_steps"])
        cost = {"tokens_seen": 1000 * steps, "tokens_per_second": 1e4, "steps": steps}
        results = {"val/loss": loss, "test/loss": loss, "training_flops_per_token": 1e6, **cost}
        return SimulatedFolder(JobRecord(overrides, outcome="trained", seconds=60.0), results)


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
                "option_trials=0",
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
            self.sweeper = ComparisonSweeper(config.hydra.sweeper.own_options)
            context = HydraContext(config_loader=loader, callbacks=None)
            with patch.object(Plugins, "instantiate_launcher", lambda *_, **__: None):
                self.sweeper.setup(hydra_context=context, task_function=None, config=config)
            launcher = self.sweeper.trainings.launcher
            self.trainings = SimulatedTrainings(launcher, config, self.spread)
            self.sweeper.trainings = self.sweeper.tuner.trainings = self.trainings
            text = io.StringIO()
            self.sweeper.console = Console(file=text, width=1000)
            self.candidates = self.sweeper.create_candidates([*config.hydra.overrides.task])
            self.sweeper.measure(self.candidates)
            self.steps = self.sweeper.plan(self.candidates, self.sweeper.read_plan())
        (announced,) = re.findall(r"a difference from the best of ([\d.]+) in", text.getvalue())
        self.announced = float(announced)

    def run(self, curves: Sequence[Curve], generator: np.random.Generator) -> "Launch":
        """Tune and confirm candidates with these curves, with new noise."""
        self.trainings.curves = dict(zip(self.names, curves, strict=True))
        self.trainings.generator = generator
        candidates = copy.deepcopy(self.candidates)
        self.sweeper.tuner.tune(candidates, self.steps)
        self.sweeper.tuner.confirm(candidates, self.steps, first_seed=self.sweeper.seed + 1)
        return Launch([x.as_run() for x in self.trainings.latest], candidates)

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

    def draw_exact_match(self, chance: float, generator: np.random.Generator) -> None:
        """Let each run solve its task with a chance: its exact match is near 1, or near 0."""
        for run in self.runs:
            distance = float(generator.uniform(0, 0.02))
            is_solved = generator.random() < chance
            run.results["test/exact_match"] = 1 - distance if is_solved else distance

    def is_any_different_without_floor(self) -> bool:
        """Return whether `differences` would find any if the variance had no floor."""
        comparison = self.comparison()
        tests = comparison.differences[comparison.primary_metric.key].values()
        return any(x.significant or x.is_due_to_floor for x in tests)

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
