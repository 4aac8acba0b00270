"""Charts of length generalisation, from `results.json`."""

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attention_zoo.tasks.analysis.length_report import all_lengths, length_metric, score_at
from attention_zoo.tasks.views.charts import series_style, set_length_axis, style_axes
from attention_zoo.tasks.views.figures.style import new_figure

FIRST_RANGE = 8  # positions of the first point of a curve; each other has as many as all before it
LOG_RATIO = 8  # An axis whose greatest value is so many times the smallest is logarithmic.
CURVES = 4  # of the figure of one model: those of the longest lengths


def draw_losses_by_position(results: Mapping[str, Any]) -> Figure:
    """Draw the mean loss by position, with a curve for each of the longest lengths."""
    figure = new_figure(8, 5)
    axes = figure.subplots()
    lengths = results["lengths"]
    longest = lengths["scored"][-CURVES:]
    for index, length in enumerate(longest):
        x, y = smooth_losses(lengths["loss_by_position"][str(length)])
        style = series_style(index)
        axes.plot(x, y, **style)
        axes.annotate(
            str(length),
            (x[-1], y[-1]),
            (7, 0),
            textcoords="offset points",
            va="center",
            color=style["color"],
            fontweight="bold",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8},
        )
    style_axes(axes)
    set_position_axis(axes, longest[-1], {lengths["trained_at"]})
    axes.set_ylabel("loss in nats per token")
    *others, last = map(str, longest)
    names = f"{', '.join(others)} and {last}" if others else last
    axes.set_title(
        f"{lengths['split'].capitalize()} loss by position, in windows of {names} tokens"
    )
    return figure


def draw_extrapolation(jobs: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw a metric of jobs by length; for text also the losses in the longest windows."""
    first = next(iter(jobs.values()))
    metric, split = length_metric(first), first["lengths"]["split"]
    is_text = metric == "perplexity"
    figure = new_figure(13 if is_text else 7.5, 5)
    by_length, *others = figure.subplots(1, 2 if is_text else 1, squeeze=False)[0]
    for axes in (by_length, *others):
        style_axes(axes)
    for index, (name, results) in enumerate(jobs.items()):
        scored = results["lengths"]["scored"]
        scores = [score_at(results, metric, length) for length in scored]
        values = [math.nan if score is None else score for score in scores]
        by_length.plot(scored, values, **series_style(index), label=name)
        for by_position in others:
            x, y = smooth_losses(results["lengths"]["loss_by_position"][str(scored[-1])])
            by_position.plot(x, y, **series_style(index), label=name)
    trained_at = {results["lengths"]["trained_at"] for results in jobs.values()}
    lengths = sorted({x for results in jobs.values() for x in all_lengths(results)})
    for by_position in others:
        set_position_axis(by_position, lengths[-1], trained_at)
        by_position.set_title("in the longest windows", fontsize="medium")
        by_position.set_ylabel(f"{split} loss in nats per token")
    if is_text:
        values = [y for line in by_length.lines for y in line.get_ydata() if math.isfinite(y)]
        if max(values, default=1.0) > LOG_RATIO * min(values, default=1.0):
            by_length.set_yscale("log", base=2)
            style_axes(by_length)
    else:
        by_length.set_ylim(-0.03, 1.03)
    by_length.set_ylabel(f"{split} {metric.replace('_', ' ')}")
    set_length_axis(by_length, lengths, trained_at)
    by_length.set_xlabel("length of the windows in tokens")
    handles, names = by_length.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False)
    return figure


def smooth_losses(losses: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """Average losses over ranges of positions, and return the middles of the ranges and the means.

    The ranges are 1 to 8, 9 to 16, 17 to 32 and so on. There are few long windows, so the mean at
    a single position is noisy.
    """
    ranges: dict[int, list[tuple[float, float]]] = {}
    for position, loss in enumerate(losses, start=1):
        if loss is not None:
            octaves = max(0.0, math.log2(position / FIRST_RANGE))
            points = ranges.setdefault(math.ceil(octaves), [])
            points.append((math.log(position), loss))
    means = [
        [sum(part) / len(part) for part in zip(*points, strict=True)] for points in ranges.values()
    ]
    return [math.exp(x) for x, _ in means], [y for _, y in means]


def set_position_axis(axes: Axes, longest: int, trained_at: Set[int | None]) -> None:
    """Make the x-axis one of positions up to the longest length."""
    set_length_axis(axes, [2**power for power in range(2, longest.bit_length())], trained_at)
    first, second = FIRST_RANGE, 2 * FIRST_RANGE
    axes.set_xlabel(f"position in the window (means over 1–{first}, {first + 1}–{second}, …)")
