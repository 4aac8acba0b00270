"""How much results differ between seeds alone: a table of measured spreads."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from omegaconf import OmegaConf

from attention_zoo.tasks.analysis.report.comparison import compare_runs
from attention_zoo.tasks.analysis.report.measures import QUALITY, Measure, standard_deviation
from attention_zoo.tasks.analysis.report.power import smallest_difference
from attention_zoo.tasks.analysis.report.runs import Run
from attention_zoo.tasks.comparison.rates import TUNING_VARIANCE

TABLE = files("attention_zoo.tasks") / "comparison/noise.yaml"


@dataclass(frozen=True)
class Noise:
    """The standard deviation over seeds of a metric, for data, a width and a number of steps."""

    data: str  # the choice of the group
    metric: str  # in `results.json`
    dim: int
    steps: int
    seeds: int  # that it was measured with
    spread: float

    @property
    def measure(self) -> Measure:
        """Return the measure of the metric."""
        return next(x for x in QUALITY if x.key == self.metric)


def read_noise() -> list[Noise]:
    """Return the measured spreads."""
    entries: Any = OmegaConf.to_container(OmegaConf.create(TABLE.read_text(encoding="utf-8")))
    return [Noise(**entry) for entry in entries]


def nearest_noise(data: str, *, dim: int, steps: int) -> Noise | None:
    """Return the spread on these data that was measured at the nearest width and length."""

    def distance(noise: Noise) -> float:
        return abs(math.log(noise.dim / dim)) + abs(math.log(noise.steps / steps))

    return min((x for x in read_noise() if x.data == data), key=distance, default=None)


def describe_power(
    data: str, *, dim: int, steps: int, seeds: int, rows: int, named_reference: bool
) -> str:
    """Return what a comparison can show, by the spread that is known of its data."""
    noise = nearest_noise(data, dim=dim, steps=steps)
    if noise is None:
        return f"The spread over seeds on data={data} is not known: see benchmarks/noise.py."
    measure = noise.measure
    difference = smallest_difference(
        noise.spread,
        seeds,
        rows,
        named_reference=named_reference,
        tuning_variance=TUNING_VARIANCE,
    )
    other = "the reference" if named_reference else "the best"
    known = (
        f"if the spread over seeds is {measure.format(noise.spread)}, as on {data} after "
        f"{noise.steps:,} steps at width {noise.dim}"
    )
    if difference > measure.highest:
        return (
            f"{seeds} seeds are too few to show any difference from {other} in {measure.title} "
            f"with a probability of 80 %, {known}. Take more, or fewer candidates."
        )
    return (
        f"{seeds} seeds show a difference from {other} of {measure.format(difference)} in "
        f"{measure.title} with a probability of 80 %, {known}."
    )


def measure_noise(runs: Sequence[Run]) -> list[Noise]:
    """Return the spread of the primary metric of each configuration with three seeds or more.

    Of several configurations with the same data, width and steps, it is the root of their mean
    variance.
    """
    groups: dict[tuple[str, str, int, int], list[list[float]]] = {}
    for comparison in compare_runs(runs, None):
        metric = comparison.primary_metric.key
        for row in comparison.rows:
            values, run = row.values(metric), row.runs[0]
            if len(values) >= 3:
                sizes = (run.config["model"]["dim"], run.results["steps"])
                groups.setdefault((run.config["choices"]["data"], metric, *sizes), []).append(
                    values
                )
    found = []
    for key, samples in groups.items():
        variances = [standard_deviation(x) ** 2 for x in samples]
        spread = math.sqrt(sum(variances) / len(variances))
        found.append(Noise(*key, seeds=sum(map(len, samples)), spread=float(f"{spread:.3g}")))
    return found
