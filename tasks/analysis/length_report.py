"""Length generalisation in `results.json`: what it holds, and tables and charts of it."""

import math
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from attention_zoo.tasks.views.charts import series_style, set_length_axis, style_axes
from attention_zoo.tasks.views.figures.style import new_figure
from attention_zoo.tasks.views.tables import Table, print_table

METRIC_PREFIX = {"valid": "val", "test": "test"}  # of the metrics of a split, such as val/loss
SWEEP_FILES = {"perplexity": "extrapolation.png", "exact_match": "exact_match.png"}
CURVES = 4  # of the figure of one model: those of the longest lengths
FIRST_RANGE = 8  # positions of the first point of a curve; each other has as many as all before it
LOG_RATIO = 8  # An axis whose greatest value is so many times the smallest is logarithmic.


def score_at(results: Mapping[str, Any], metric: str, length: int) -> float | None:
    """Return a metric at a length; None if the length was refused or the data lack the metric."""
    name = f"{METRIC_PREFIX[results['lengths']['split']]}/{metric}@{length}"
    not_finite = results.get("not_finite", {}).get(name)
    return float(not_finite) if not_finite else results.get(name)


def all_lengths(*runs: Mapping[str, Any]) -> list[int]:
    """Return the lengths that any of the runs was asked for, including those that were refused."""
    lengths = [results["lengths"] for results in runs]
    return sorted({int(length) for x in lengths for length in (*x["scored"], *x["refused"])})


def length_metric(results: Mapping[str, Any]) -> str:
    """Return the metric by which lengths are compared: the exact match of diagnostic tasks."""
    return "perplexity" if "loss_by_position" in results["lengths"] else "exact_match"


def length_table(results: Mapping[str, Any]) -> Table:
    """Return the metrics of a model, with a row for each length.

    Perplexities of text are also divided by that at the training length, if it was scored.
    """
    lengths = results["lengths"]
    is_text = length_metric(results) == "perplexity"
    titles = ["exact match", "accuracy", "loss"]
    if is_text:
        titles = ["perplexity", "ratio", "sliding", "sliding ratio", "stride"]
    rows = []
    for length in all_lengths(results):
        name = f"{length}, trained" if length == lengths["trained_at"] else str(length)
        if str(length) in lengths["refused"]:
            cells = ["refused", *[""] * (len(titles) - 1)]
        elif is_text:
            cells = [
                format_value(results, metric, length)
                for metric in ("perplexity", "sliding_perplexity")
                for format_value in (format_score, format_ratio)
            ]
            cells.append(str(lengths["stride"][str(length)]))
        else:
            metrics = ("exact_match", "accuracy", "loss")
            cells = [format_score(results, metric, length) for metric in metrics]
        rows.append([name, *cells])
    count = f", {lengths['targets']:,} tokens predicted" if "targets" in lengths else ""
    return Table(f"Lengths, {lengths['split']} split{count}", ["length", *titles], rows)


def format_ratio(results: Mapping[str, Any], metric: str, length: int) -> str:
    """Return a metric divided by that at the training length."""
    value = score_at(results, metric, length)
    base = score_at(results, metric, results["lengths"]["trained_at"])
    return "" if value is None or base is None else f"{value / base:.3f}"


def format_score(results: Mapping[str, Any], metric: str, length: int, digits: int = 3) -> str:
    """Return a metric at a length as text."""
    value = score_at(results, metric, length)
    return "" if value is None else f"{value:,.{digits if value < 1000 else 0}f}"


def sweep_table(metric: str, jobs: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a metric of jobs by their names, with a column for each length.

    A cell is empty if the length was not requested or the text is too short for it.
    """
    lengths = all_lengths(*jobs.values())
    rows = []
    for name, results in jobs.items():
        refused = results["lengths"]["refused"]
        cells = [
            "refused" if str(x) in refused else format_score(results, metric, x) for x in lengths
        ]
        rows.append([name, *cells])
    title = f"{metric.replace('_', ' ').capitalize()} by length"
    return Table(title, ["", *(f"@{length}" for length in lengths)], rows)


def print_lengths(console: Console, results: Mapping[str, Any]) -> None:
    """Print the table of a model's lengths, and why some were refused."""
    print_table(console, length_table(results))
    for length, reason in results["lengths"]["refused"].items():
        console.print(f"{length} refused: {reason}", highlight=False, soft_wrap=True)


def report_sweep(console: Console, jobs: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Print tables of the lengths of jobs by their names, and draw them."""
    jobs = dict(zip(shorten_overrides(list(jobs)), jobs.values(), strict=True))
    for metric, file in SWEEP_FILES.items():
        if group := {name: job for name, job in jobs.items() if length_metric(job) == metric}:
            print_table(console, sweep_table(metric, group))
            draw_extrapolation(group).savefig(folder / file, dpi=150)
            console.print(f"Picture: {folder / file}", soft_wrap=True, highlight=False)


def shorten_overrides(names: Sequence[str]) -> list[str]:
    """Return only the values if each name is one override of the same option."""
    parts = [name.partition("=") for name in names]
    options = {option for option, _, _ in parts}
    if len(options) > 1 or any(not value or " " in value for _, _, value in parts):
        return list(names)
    return [value for _, _, value in parts]


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
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}
        font: Any = {"color": style["color"], "fontweight": "bold", "va": "center", "bbox": box}
        axes.annotate(str(length), (x[-1], y[-1]), (7, 0), textcoords="offset points", **font)
    style_axes(axes)
    set_position_axis(axes, longest[-1], {lengths["trained_at"]})
    axes.set_ylabel("loss in nats per token")
    *others, last = map(str, longest)
    names = f"{', '.join(others)} and {last}" if others else last
    split = lengths["split"].capitalize()
    axes.set_title(f"{split} loss by position, in windows of {names} tokens")
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
    values: list[float] = []
    for index, (name, results) in enumerate(jobs.items()):
        style = series_style(index) | {"label": name}
        scored = results["lengths"]["scored"]
        scores = [score_at(results, metric, length) for length in scored]
        points = [math.nan if score is None else score for score in scores]
        values += points
        by_length.plot(scored, points, **style)
        for by_position in others:
            x, y = smooth_losses(results["lengths"]["loss_by_position"][str(scored[-1])])
            by_position.plot(x, y, **style)
    trained_at = {results["lengths"]["trained_at"] for results in jobs.values()}
    lengths = all_lengths(*jobs.values())
    for by_position in others:
        set_position_axis(by_position, lengths[-1], trained_at)
        by_position.set_title("in the longest windows", fontsize="medium")
        by_position.set_ylabel(f"{split} loss in nats per token")
    if is_text:
        set_perplexity_axis(by_length, [*filter(math.isfinite, values)])
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
            octave = math.ceil(max(0.0, math.log2(position / FIRST_RANGE)))
            ranges.setdefault(octave, []).append((math.log(position), loss))
    columns = [list(zip(*points, strict=True)) for points in ranges.values()]
    middles = [math.exp(sum(logarithms) / len(logarithms)) for logarithms, _ in columns]
    return middles, [sum(group) / len(group) for _, group in columns]


def set_position_axis(axes: Axes, longest: int, trained_at: Set[int | None]) -> None:
    """Make the x-axis one of positions up to the longest length."""
    set_length_axis(axes, [2**power for power in range(2, longest.bit_length())], trained_at)
    first, second = FIRST_RANGE, 2 * FIRST_RANGE
    axes.set_xlabel(f"position in the window (means over 1–{first}, {first + 1}–{second}, …)")


def set_perplexity_axis(axes: Axes, values: Sequence[float]) -> None:
    """Make the y-axis logarithmic if the perplexities differ widely."""
    if max(values, default=1.0) > LOG_RATIO * min(values, default=1.0):
        axes.set_yscale("log", base=2)
        style_axes(axes)
