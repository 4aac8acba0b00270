"""The charts of a report.

A row has the same style in all of them. The best rows have colours, dashes and markers of their
own; the others are grey, and named by the pointer.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from statistics import fmean
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from attention_zoo.tasks.analysis.length_report import LOG_RATIO, set_perplexity_axis
from attention_zoo.tasks.analysis.report.comparison import Comparison, Row
from attention_zoo.tasks.analysis.report.measures import Measure, split_unit, standard_deviation
from attention_zoo.tasks.views.charts import (
    figure_svg,
    label_points,
    series_style,
    set_length_axis,
    shorten,
    style_axes,
    svg_settings,
    write_numbers_in_full,
)
from attention_zoo.tasks.views.figures.style import COLOURS, GREY, new_figure

LIGHT_GREY = "#8c949d"
POINTS = 150  # of a curve
LENGTH_METRICS = {"perplexity": "Perplexity", "exact_match": "Exact match"}
COSTS = (
    *("tokens_per_second", "peak_memory_bytes", "parameters", "decode_state_bytes"),
    "training_flops_per_token",
)


def draw_charts(comparison: Comparison) -> dict[str, list[Markup]]:
    """Draw the charts of a comparison as SVG, by kind."""
    labels = [row.label for row in comparison.rows]
    with svg_settings():
        figures = {
            "seeds": [draw_seeds(comparison)],
            "loss": draw_losses(comparison.rows),
            "cost": draw_costs(comparison),
            "lengths": draw_lengths(comparison.rows),
        }
        charts = {
            kind: [figure_svg(x, x.axes[0].get_title(loc="left"), labels) for x in drawn]
            for kind, drawn in figures.items()
        }
    return {kind: svg for kind, svg in charts.items() if svg}


def new_chart(title: str, height: float = 3.6) -> tuple[Figure, Axes]:
    """Return a figure of a height in inches, and its axes with a title."""
    figure = new_figure(5.4, height)
    axes = figure.subplots()
    style_axes(axes)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    return figure, axes


def row_style(index: int) -> dict[str, Any]:
    """Return the style of the row at an index, and the id of what is drawn in it."""
    grey = {"color": LIGHT_GREY, "marker": "o", "linestyle": "-", "linewidth": 1, "markersize": 4}
    return (series_style(index) if index < len(COLOURS) else grey) | {"gid": f"row-{index}"}


@lru_cache
def draw_swatch(index: int) -> Markup:
    """Return the line and the marker of the row at an index as SVG, for legends and tables."""
    with svg_settings():
        figure = new_figure(0.5, 0.18)
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 2), ylim=(-1, 1))
        axes.set_axis_off()
        axes.plot([0, 1, 2], [0, 0, 0], markevery=[1], **row_style(index) | {"gid": None})
        return figure_svg(figure, "")


def draw_seeds(comparison: Comparison) -> Figure:
    """Draw the primary metric of each seed, with the means of the rows and of the reference."""
    metric, rows = comparison.primary_metric, comparison.rows
    figure, axes = new_chart(f"{metric.title} of each seed", height=1.1 + 0.25 * len(rows))
    for index, row in enumerate(rows):
        values = row.values(metric.key)
        style = row_style(index) | {"linestyle": "none"}
        bar = {"marker": "|", "markersize": 15, "markeredgewidth": 2}
        axes.plot(values, [index] * len(values), **style, alpha=0.6)
        if values:
            axes.plot([fmean(values)], [index], **style | bar)
    if (reference := comparison.reference.mean(metric.key)) is not None:
        axes.axvline(reference, color=GREY, linestyle="--", linewidth=1, zorder=0)
    axes.set_yticks(range(len(rows)), [shorten(row.label, 32) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("bars: means; dashed line: mean of the reference")
    return figure


def draw_losses(rows: Sequence[Row]) -> Iterator[Figure]:
    """Draw the losses by tokens: means and standard deviations over seeds."""
    for key, title in (("val/loss", "Validation loss"), ("train/loss", "Training loss")):
        curves = {index: loss_curve(row, key) for index, row in enumerate(rows)}
        curves = {index: curve for index, curve in curves.items() if len(curve) > 1}
        if not curves:
            continue
        figure, axes = new_chart(title)
        for index, curve in reversed(curves.items()):  # The best is drawn last, over the others.
            tokens, losses, deviations = curve.T
            style = row_style(index)
            # The markers of rows are not at the same tokens.
            axes.plot(tokens, losses, **style, markevery=(0.02 * index + 0.06, 0.2))
            band = {"color": style["color"], "alpha": 0.15, "linewidth": 0, "gid": style["gid"]}
            axes.fill_between(tokens, losses - deviations, losses + deviations, **band)
        # The steep start of the curves is cut off: it is higher than all after a quarter.
        tokens, losses, _ = np.concatenate(list(curves.values())).T
        bottom, top = losses.min(), losses[tokens >= tokens.max() / 4].max()
        margin = 0.08 * (top - bottom) or 0.1
        axes.set_ylim(bottom - margin, top + margin)
        axes.set(xlabel="target tokens seen", ylabel="nats per token")
        axes.xaxis.set_major_formatter(EngFormatter())
        yield figure


def loss_curve(row: Row, key: str) -> np.ndarray:
    """Return tokens, mean and deviation over seeds [n 3], at the steps that all seeds have."""
    history: dict[int, list[tuple[float, float]]] = {}
    for run in row.runs:
        for step, tokens, loss in run.results.get("history", {}).get(key, ()):
            if loss is not None:
                history.setdefault(step, []).append((tokens, loss))
    seeds = max(map(len, history.values()), default=0)
    points = [
        (fmean(tokens), fmean(losses), standard_deviation(losses))
        for _, pairs in sorted(history.items())
        if len(pairs) == seeds
        for tokens, losses in [list(zip(*pairs, strict=True))]
    ]
    stride = max(1, math.ceil(len(points) / POINTS))
    return np.array(points[::-1][::stride][::-1])  # The last point is always one of them.


def draw_costs(comparison: Comparison) -> Iterator[Figure]:
    """Draw the primary metric by each cost in which the rows differ, with the Pareto front."""
    metric = comparison.primary_metric
    for cost in (x for key in COSTS for x in comparison.cost if x.key == key):
        points = {
            index: (x, y)
            for index, row in enumerate(comparison.rows)
            if (x := row.mean(cost.key)) is not None and (y := row.mean(metric.key)) is not None
        }
        costs = [x for x, _ in points.values()]
        if len({*costs}) < 2:
            continue
        figure, axes = new_chart(f"{metric.title} by {cost.title}")
        unit = set_cost_axis(axes, cost, min(costs), max(costs))
        points = {index: (x / unit, y) for index, (x, y) in points.items()}
        front = pareto_front(points.values(), cost, metric)
        axes.plot(*zip(*front, strict=True), color=GREY, linewidth=1, linestyle=":", zorder=0)
        for index, (x, _) in reversed(points.items()):
            draw_mean(axes, index, [(x, comparison.rows[index].values(metric.key))])
        upward = "up" if metric.better == "higher" else "down"
        axes.set_ylabel(f"{metric.title} (better: {upward})")
        axes.margins(0.08)
        label_points(
            axes, {comparison.rows[i].label: points[i] for i in points if i < len(COLOURS)}
        )
        yield figure


def pareto_front(
    points: Iterable[tuple[float, float]], cost: Measure, metric: Measure
) -> list[tuple[float, float]]:
    """Return the points of cost and quality that no other one beats in both, from the cheapest."""
    cheapest_first = sorted(points, key=lambda x: x[0], reverse=cost.better == "higher")
    front: list[tuple[float, float]] = []
    for point in cheapest_first:
        gain = point[1] - front[-1][1] if front else 0.0
        if not front or (gain and metric.improves(gain)):
            if front and front[-1][0] == point[0]:
                front.pop()
            front.append(point)
    return front


def set_cost_axis(axes: Axes, cost: Measure, low: float, high: float) -> float:
    """Make the x-axis one of costs, and return the unit of its numbers."""
    number, unit = high, ""
    if isinstance(cost.number_format, str):
        number, unit = split_unit(high, cost.number_format)
    if low > 0 and high / low > LOG_RATIO:
        base, steps = (2, (1,)) if cost.number_format == "bytes" else (10, (1, 2, 5))
        axes.set_xscale("log", base=base)
        write_numbers_in_full(axes.xaxis)
        axes.xaxis.set_major_locator(LogLocator(base=base, subs=steps))
        axes.xaxis.set_minor_locator(NullLocator())
    better = "right" if cost.better == "higher" else "left"
    axes.set_xlabel(f"{cost.title}{unit and f' in {unit}'} (better: {better})")
    return high / number


def draw_lengths(rows: Sequence[Row]) -> Iterator[Figure]:
    """Draw the measures of quality by length, if runs were scored at several lengths."""
    entries = [run.results["lengths"] for x in rows for run in x.runs if "lengths" in run.results]
    for metric, title in LENGTH_METRICS.items():
        curves = {index: row.values_by_length(metric) for index, row in enumerate(rows)}
        means = [fmean(values) for curve in curves.values() for values in curve.values()]
        if not means:
            continue
        figure, axes = new_chart(f"{title} by length")
        if metric == "perplexity":
            set_perplexity_axis(axes, means)
        for index, curve in reversed(curves.items()):
            draw_mean(axes, index, list(curve.items()))
        lengths = sorted({length for curve in curves.values() for length in curve})
        set_length_axis(axes, lengths, {x["trained_at"] for x in entries} & {*lengths})
        axes.set_xlabel("length in tokens")
        yield figure


def draw_mean(axes: Axes, index: int, points: Sequence[tuple[float, Sequence[float]]]) -> None:
    """Draw means over seeds with bars of one standard deviation, joined by a line."""
    style = row_style(index)
    bar = style | {"marker": "", "linestyle": "-", "linewidth": 1.5}
    for x, values in points:
        mean, deviation = fmean(values), standard_deviation(values)
        if deviation:
            axes.plot([x, x], [mean - deviation, mean + deviation], **bar)
    axes.plot([x for x, _ in points], [fmean(values) for _, values in points], **style)
