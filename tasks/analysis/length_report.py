"""Length generalisation in `results.json`: what it holds, and tables of it.

Nothing here imports torch or matplotlib, so that a sweep starts fast.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from attention_zoo.tasks.views.tables import Table, print_table

PREFIX = {"valid": "val", "test": "test"}  # of the names of a split's metrics
SWEEP_FILES = {"perplexity": "extrapolation.png", "exact_match": "exact_match.png"}


def score_at(results: Mapping[str, Any], metric: str, length: int) -> float | None:
    """Return a metric at a length; None if the length was refused or the data lack the metric."""
    name = f"{PREFIX[results['lengths']['split']]}/{metric}@{length}"
    not_finite = results.get("not_finite", {}).get(name)
    return float(not_finite) if not_finite else results.get(name)


def all_lengths(results: Mapping[str, Any]) -> list[int]:
    """Return the lengths that were requested, including those that were refused."""
    lengths = results["lengths"]
    return sorted([*lengths["scored"], *map(int, lengths["refused"])])


def length_metric(results: Mapping[str, Any]) -> str:
    """Return the metric by which lengths are compared: the exact match of diagnostic tasks."""
    return "perplexity" if "loss_by_position" in results["lengths"] else "exact_match"


def length_table(results: Mapping[str, Any]) -> Table:
    """Return the metrics of a model, with a row for each length.

    Perplexities of text are also divided by that at the training length, if it was scored.
    """
    lengths = results["lengths"]
    is_text = length_metric(results) == "perplexity"
    titles = ["length", "exact match", "accuracy", "loss"]
    if is_text:
        titles = ["length", "perplexity", "ratio", "sliding", "sliding ratio", "stride"]
    rows = []
    for length in all_lengths(results):
        name = f"{length}, trained" if length == lengths["trained_at"] else str(length)
        if str(length) in lengths["refused"]:
            cells = ["refused", *[""] * (len(titles) - 2)]
        elif is_text:
            cells = []
            for metric in ("perplexity", "sliding_perplexity"):
                cells.append(format_score(score_at(results, metric, length)))
                cells.append(format_ratio(results, metric, length))
            cells.append(str(lengths["stride"][str(length)]))
        else:
            metrics = ("exact_match", "accuracy", "loss")
            cells = [format_score(score_at(results, metric, length)) for metric in metrics]
        rows.append([name, *cells])
    count = f", {lengths['targets']:,} tokens predicted" if "targets" in lengths else ""
    return Table(f"Lengths, {lengths['split']} split{count}", titles, rows)


def format_ratio(results: Mapping[str, Any], metric: str, length: int) -> str:
    """Return a metric divided by that at the training length."""
    value = score_at(results, metric, length)
    base = score_at(results, metric, results["lengths"]["trained_at"])
    return "" if value is None or base is None else f"{value / base:.3f}"


def format_score(value: float | None, digits: int = 3) -> str:
    """Return a metric as text."""
    return "" if value is None else f"{value:,.{digits if value < 1000 else 0}f}"


def sweep_table(metric: str, jobs: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a metric of jobs by their names, with a column for each length.

    A cell is empty if the length was not requested or the text is too short for it.
    """
    lengths = sorted({length for results in jobs.values() for length in all_lengths(results)})
    rows = []
    for name, results in jobs.items():
        refused = results["lengths"]["refused"]
        cells = [
            "refused" if str(x) in refused else format_score(score_at(results, metric, x))
            for x in lengths
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
    from attention_zoo.tasks.analysis.length_charts import draw_extrapolation

    jobs = dict(zip(shorten_overrides(list(jobs)), jobs.values(), strict=True))
    for metric, file in SWEEP_FILES.items():
        group = {
            name: results for name, results in jobs.items() if length_metric(results) == metric
        }
        if group:
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
