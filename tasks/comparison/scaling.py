"""How the loss of each candidate falls with training FLOPs, and whether their order changes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, zip_longest
from statistics import fmean

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import AutoLocator, EngFormatter, LogLocator, NullLocator

from attention_zoo.tasks.analysis.report.charts import new_chart, row_style
from attention_zoo.tasks.analysis.report.comparison import SIGNIFICANCE_LEVEL
from attention_zoo.tasks.analysis.report.measures import format_with_unit
from attention_zoo.tasks.analysis.report.power import t_quantile
from attention_zoo.tasks.analysis.report.runs import Run
from attention_zoo.tasks.analysis.report.significance import (
    estimate_variance_floor,
    holm_correction,
    welch_test,
)
from attention_zoo.tasks.comparison.rates import TUNING_VARIANCE
from attention_zoo.tasks.views.charts import figure_svg, svg_settings, write_numbers_in_full
from attention_zoo.tasks.views.tables import Table


@dataclass(frozen=True)
class Size:
    """The runs of a candidate at one width: their mean FLOPs, and a loss for each seed."""

    flops: float
    losses: list[float]


Curve = Sequence[Size]  # by ascending width


@dataclass(frozen=True)
class PowerLaw:
    """loss = c · FLOPs^exponent, fitted to the logarithms by least squares."""

    exponent: float
    logarithm: float  # of c
    error: float  # half the width of the 95 % interval of the exponent; NaN for two points or fewer

    def at(self, flops: float) -> float:
        """Return the loss at a number of FLOPs."""
        return math.exp(self.logarithm + self.exponent * math.log(flops))


def size_of_runs(runs: Sequence[Run]) -> Size:
    """Return what the runs of a candidate at one width show."""
    flops = [x.results["training_flops_per_token"] * x.results["tokens_seen"] for x in runs]
    return Size(fmean(flops), [x.results["val/loss"] for x in runs])


def fit_power_law(curve: Curve) -> PowerLaw:
    """Fit a power law to all seeds at all widths.

    The interval is that of the slope of a regression, ± t·s/√Σ(x − x̄)² with n − 2 degrees of
    freedom.
    """
    points = [(math.log(size.flops), math.log(x)) for size in curve for x in size.losses]
    x, y = np.array(points).T
    slope, intercept = np.polyfit(x, y, 1)
    freedom = len(points) - 2
    if freedom < 1:
        return PowerLaw(float(slope), float(intercept), math.nan)
    variance = ((y - slope * x - intercept) ** 2).sum() / freedom
    deviation = math.sqrt(variance / ((x - x.mean()) ** 2).sum())
    return PowerLaw(float(slope), float(intercept), t_quantile(freedom) * deviation)


def describe_scaling(curves: Mapping[str, Curve]) -> Iterator[str]:
    """Yield where the order of two candidates changes."""
    changes = list(find_order_changes(curves))
    yield from changes
    if not changes:
        yield "No change of order is shown between the widths."


def find_order_changes(curves: Mapping[str, Curve]) -> Iterator[str]:
    """Yield the pairs whose order is significant at two widths, and not the same.

    Welch's tests over seeds, with a floor of the variance at each width, and Holm's correction over
    all pairs and widths.
    """
    widths = zip_longest(*curves.values(), fillvalue=Size(0.0, []))
    floors = [estimate_variance_floor([size.losses for size in at_width]) for at_width in widths]
    tests = [
        (first, second, index)
        for first, second in combinations(curves, 2)
        for index in range(min(len(curves[first]), len(curves[second])))
    ]
    differences = holm_correction(
        [
            welch_test(curves[x][i].losses, curves[y][i].losses, TUNING_VARIANCE, floors[i])
            for x, y, i in tests
        ]
    )
    signs: dict[tuple[str, str], dict[int, bool]] = {}
    for (first, second, index), difference in zip(tests, differences, strict=True):
        p_value = difference.adjusted_p_value
        if p_value is not None and p_value < SIGNIFICANCE_LEVEL and difference.delta is not None:
            signs.setdefault((first, second), {})[index] = difference.delta < 0
    for (first, second), better in signs.items():
        for low, high in zip(list(better)[:-1], list(better)[1:], strict=True):
            if better[low] != better[high]:
                small, large = (first, second) if better[low] else (second, first)
                start, end = (
                    format_flops(fmean([curves[name][i].flops for name in (first, second)]))
                    for i in (low, high)
                )
                yield (
                    f"`{small}` is better at {start} and `{large}` at {end}: their order changes "
                    "between."
                )


def scaling_table(curves: Mapping[str, Curve]) -> Table:
    """Return the mean loss of each candidate at each width, and its power law."""
    rows = []
    for name, curve in curves.items():
        law = fit_power_law(curve)
        means = [f"{fmean(size.losses):.4f} at {format_flops(size.flops)}" for size in curve]
        rows.append([name, " / ".join(means), f"{law.exponent:.3f} ± {law.error:.3f}"])
    return Table("Widths", ["candidate", "val/loss", "exponent"], rows, "llr")


def format_flops(flops: float) -> str:
    """Return "1.2 TFLOPs"."""
    return f"{format_with_unit(flops, 'count')}FLOPs"


def draw_scaling(curves: Mapping[str, Curve]) -> Markup:
    """Draw the loss of each seed by training FLOPs, with the fitted power laws."""
    with svg_settings():
        figure, axes = new_chart("Loss by training FLOPs, with power laws", 4.2)
        for index, curve in enumerate(curves.values()):
            style = row_style(index)
            points = [(size.flops, x) for size in curve for x in size.losses]
            axes.plot(*zip(*points, strict=True), **style | {"linestyle": "none"})
            law, ends = fit_power_law(curve), [curve[0].flops, curve[-1].flops]
            axes.plot(ends, [law.at(x) for x in ends], **style | {"marker": ""})
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.yaxis.set_major_locator(AutoLocator())
        write_numbers_in_full(axes.yaxis)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
        axes.set(xlabel="training FLOPs", ylabel="nats per token")
        return figure_svg(figure, "Loss by training FLOPs", list(curves))
