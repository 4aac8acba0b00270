"""What is told of length generalisation, out of `results.json`: tables and pictures.

Light on purpose: a sweep reports without torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

PREFIX = {"valid": "val", "test": "test"}  # what a split's metrics are called
# Okabe and Ito's colours, which the colour-blind tell apart, without the yellow that is too light.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#8C8C8C")
MARKERS = "os^Dv*PX"
DASHES = ("-", "--", ":")
FIRST = 8  # positions of the first point of a curve of losses; each other has as many as all before
STEEP = 8  # perplexities that are so many times others need an axis of octaves
PICTURES = {"perplexity": "extrapolation.png", "exact_match": "exact_match.png"}  # of a sweep
CURVES = 4  # of a picture of one model: the longest lengths


def score(results: Mapping[str, Any], metric: str, length: int) -> float | None:
    """A figure at a length, None where it was refused; infinite where the model is lost."""
    name = f"{PREFIX[results['lengths']['split']]}/{metric}@{length}"
    broken = results.get("not_finite", {}).get(name)
    return float(broken) if broken else results.get(name)


def asked(results: Mapping[str, Any]) -> list[int]:
    """All lengths that were asked for, refused ones too."""
    told = results["lengths"]
    return sorted([*told["scored"], *map(int, told["refused"])])


def measure(results: Mapping[str, Any]) -> str:
    """The metric that tells how well a length went."""
    return "perplexity" if "loss_by_position" in results["lengths"] else "exact_match"


def length_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: a length each. Of text, the perplexities also by that at the training
    length, where it is among the lengths.
    """
    told = results["lengths"]
    text = measure(results) == "perplexity"
    columns = ["length", "exact match", "accuracy", "loss"]
    metrics = ["exact_match", "accuracy", "loss"]
    if text:
        columns = ["length", "perplexity", "ratio", "sliding", "sliding ratio", "stride"]
        metrics = ["perplexity", "sliding_perplexity"]
    rows = []
    for length in asked(results):
        name = f"{length}, trained" if length == told["trained_at"] else str(length)
        if str(length) in told["refused"]:
            rows.append([name, "refused", *[""] * (len(columns) - 2)])
            continue
        figures = [figure(score(results, metric, length)) for metric in metrics]
        if text:
            ratios = [ratio(results, metric, length) for metric in metrics]
            stride = str(told["stride"][str(length)])
            figures = [figures[0], ratios[0], figures[1], ratios[1], stride]
        rows.append([name, *figures])
    return columns, rows


def ratio(results: Mapping[str, Any], metric: str, length: int) -> str:
    """A figure divided by that at the training length."""
    ours = score(results, metric, length)
    base = score(results, metric, results["lengths"]["trained_at"])
    return "" if ours is None or base is None else f"{ours / base:.3f}"


def figure(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:,.{digits if value < 1000 else 0}f}"


def sweep_table(jobs: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: a job each, by its name, with how well it went at every length.

    A job that was refused a length, and not because of the text, has no figure there.
    """
    lengths = sorted({length for results in jobs.values() for length in asked(results)})
    rows = []
    for name, results in jobs.items():
        refused = results["lengths"]["refused"]
        figures = [
            "refused" if str(x) in refused else figure(score(results, measure(results), x))
            for x in lengths
        ]
        rows.append([name, *figures])
    return ["", *(f"@{length}" for length in lengths)], rows


def print_table(console: Any, title: str, columns: Sequence[str], rows: list[list[str]]) -> None:
    """Names at the left, figures at the right."""
    from rich.table import Table
    from rich.text import Text

    table: Table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def print_lengths(console: Any, results: Mapping[str, Any]) -> None:
    """The table of a model's lengths, and why some were refused."""
    told = results["lengths"]
    targets = f", {told['targets']:,} tokens predicted" if "targets" in told else ""
    print_table(console, f"Lengths, {told['split']} split{targets}", *length_table(results))
    for length, reason in told["refused"].items():
        console.print(f"{length} refused: {reason}", highlight=False, soft_wrap=True)


def report_sweep(console: Any, jobs: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """A table and a picture of what jobs, by their names, make of the lengths."""
    jobs = dict(zip(short_names(list(jobs)), jobs.values(), strict=True))
    for metric, picture in PICTURES.items():
        group = {name: results for name, results in jobs.items() if measure(results) == metric}
        if group:
            words = metric.replace("_", " ").capitalize()
            print_table(console, f"{words} by length", *sweep_table(group))
            extrapolation_figure(group).savefig(folder / picture)
            console.print(f"Picture: {folder / picture}", soft_wrap=True, highlight=False)


def short_names(names: list[str]) -> list[str]:
    """Only the values, where all names are one override of the same option."""
    parts = [name.partition("=") for name in names]
    options = {option for option, _, _ in parts}
    if len(options) > 1 or any(not value or " " in value for _, _, value in parts):
        return names
    return [value for _, _, value in parts]


def loss_by_position_figure(results: Mapping[str, Any]) -> Figure:
    """Loss against position, a curve for each of the longest lengths; smoothed as it says."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axis = figure.subplots()
    told = results["lengths"]
    longest = told["scored"][-CURVES:]
    for place, length in enumerate(longest):
        x, y = smoothed(told["loss_by_position"][str(length)])
        axis.plot(x, y, **style(place))
        axis.annotate(
            str(length),
            (x[-1], y[-1]),
            (7, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[place],
            fontweight="bold",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8},
        )
    positions(axis, longest[-1], {told["trained_at"]})
    axis.set_ylabel("loss in nats per token")
    axis.set_title(
        f"{told['split'].capitalize()} loss by position, in windows of {listed(longest)}"
    )
    return figure


def extrapolation_figure(jobs: Mapping[str, Mapping[str, Any]]) -> Figure:
    """How well each job went at every length, and, of text, the loss against position in the
    longest windows that a job has.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    first = next(iter(jobs.values()))
    text = measure(first) == "perplexity"
    figure = Figure(figsize=(13 if text else 7.5, 5), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2 if text else 1, squeeze=False)[0]
    for place, (name, results) in enumerate(jobs.items()):
        lengths = results["lengths"]["scored"]
        points = [score(results, measure(results), length) for length in lengths]
        shown = [math.nan if point is None else point for point in points]
        panels[0].plot(lengths, shown, **style(place), label=name)
        if text:
            x, y = smoothed(results["lengths"]["loss_by_position"][str(lengths[-1])])
            panels[1].plot(x, y, **style(place), label=name)
    split = first["lengths"]["split"]
    trained = {results["lengths"]["trained_at"] for results in jobs.values()}
    lengths = sorted({x for results in jobs.values() for x in asked(results)})
    if text:
        heights = [y for line in panels[0].lines for y in line.get_ydata() if math.isfinite(y)]
        if max(heights, default=1.0) > STEEP * min(heights, default=1.0):
            panels[0].set_yscale("log", base=2)
            panels[0].yaxis.set_major_formatter(ScalarFormatter())
        panels[0].set_ylabel(f"{split} perplexity")
        positions(panels[1], lengths[-1], trained)
        panels[1].set_title("in the longest windows", fontsize="medium")
        panels[1].set_ylabel(f"{split} loss in nats per token")
    else:
        panels[0].set_ylabel(f"{split} exact match")
        panels[0].set_ylim(-0.03, 1.03)
    by_length(panels[0], lengths, trained)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False)
    return figure


def style(place: int) -> dict[str, Any]:
    """Of the curve at a place: colour, marker and dashes, so that no two are alike."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": DASHES[place // len(COLOURS) % len(DASHES)],
        "markersize": 6,
        "linewidth": 1.8,
    }


def smoothed(losses: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """A curve of losses by position: the middles of ranges of positions, and the mean loss there.

    The ranges are 1 to 8, 9 to 16, 17 to 32 and so on: long windows are few, so that the mean at
    a single position would say little.
    """
    ranges: dict[int, list[tuple[float, float]]] = {}
    for position, loss in enumerate(losses, start=1):
        if loss is not None:
            octaves = max(0.0, math.log2(position / FIRST))
            points = ranges.setdefault(math.ceil(octaves), [])
            points.append((math.log(position), loss))
    means = [
        [sum(part) / len(part) for part in zip(*points, strict=True)] for points in ranges.values()
    ]
    return [math.exp(x) for x, _ in means], [y for _, y in means]


def positions(axis: Axes, longest: int, trained: Set[int | None]) -> None:
    """The axis of positions up to the longest length, with the training length."""
    by_length(axis, [2**power for power in range(2, longest.bit_length())], trained)
    axis.set_xlabel(f"position in the window (means over 1–{FIRST}, {FIRST + 1}–{2 * FIRST}, …)")


def by_length(axis: Axes, lengths: Sequence[int], trained: Set[int | None]) -> None:
    """An axis of tokens, each step twice the one before, with the training length."""
    from matplotlib.ticker import NullLocator

    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [str(length) for length in lengths])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("length of the windows in tokens")
    axis.grid(color="0.9")
    axis.spines[["top", "right"]].set_visible(False)
    for length in (length for length in trained if length is not None):
        axis.axvline(length, color="0.4", linestyle="--", linewidth=1, zorder=0)
        axis.annotate(
            f"trained at {length}",
            (length, 1),
            (4, -4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            color="0.3",
        )


def listed(lengths: Sequence[int]) -> str:
    """64, 128 and 256."""
    *most, last = map(str, lengths)
    return f"{', '.join(most)} and {last} tokens" if most else f"{last} tokens"
