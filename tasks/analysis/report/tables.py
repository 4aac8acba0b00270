"""The tables of a report, for the console and for its files."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from attention_zoo.tasks.analysis.report.charts import LENGTH_METRICS
from attention_zoo.tasks.analysis.report.comparison import Comparison, Row, differing_keys
from attention_zoo.tasks.analysis.report.conditions import find_conditions
from attention_zoo.tasks.analysis.report.measures import Measure
from attention_zoo.tasks.analysis.report.runs import Run, run_names
from attention_zoo.tasks.configuration.resolved_config import flatten
from attention_zoo.tasks.views.tables import Cell, Table

CONDITION_STATES = {
    True: Cell("equal", style="good"),
    False: Cell("not equal", style="bad"),
    None: Cell("unknown", style="muted"),
}
# Entries of results.json that would fill a cell with pages.
LONG_ENTRIES = ("history", "lengths", "versions")


def comparison_table(comparison: Comparison) -> Table:
    """Return quality, the test of the primary metric, and cost, with a row for each row."""
    metric, *others = comparison.quality
    measures = [*others, *comparison.cost]
    titles = [comparison.label_title, "seeds", metric.title, "vs. reference"]
    rows = [
        [
            row.label,
            seeds_cell(row),
            mean_cell(row, metric),
            difference_cell(comparison, row, metric),
            *(mean_cell(row, measure) for measure in measures),
        ]
        for row in comparison.rows
    ]
    return Table(comparison.title, [*titles, *(x.title for x in measures)], rows)


def seeds_cell(row: Row) -> Cell:
    """Return the number of trained seeds, and of how many, if not all were trained."""
    trained, failed = len(row.runs), len(row.failed)
    return Cell(f"{trained} of {trained + failed}" if failed else str(trained), trained)


def mean_cell(row: Row, measure: Measure) -> Cell:
    """Return the mean over seeds, and for how many seeds it is, if not for all."""
    values = row.values(measure.key)
    text = measure.format_mean(values)
    if 0 < len(values) < len(row.runs):
        text += f" ({len(values)} of {len(row.runs)} seeds)"
    if not values and any(measure.key in run.results.get("not_finite", {}) for run in row.runs):
        text = "not finite"
    return Cell(text, row.mean(measure.key))


def difference_cell(comparison: Comparison, row: Row, measure: Measure) -> Cell:
    """Return a row's difference and its test; it is muted if it is not significant."""
    difference = comparison.difference(row, measure)
    if difference is None:
        return Cell("reference", 0.0, "muted")
    if difference.delta is None:
        return Cell(difference.untested_reason, None, "muted")
    sign = "+" if difference.delta > 0 else ""
    text = f"{sign}{measure.format(difference.delta)} ({difference.test_result})"
    style = "good" if measure.improves(difference.delta) else "bad"
    return Cell(text, difference.delta, style if difference.significant else "muted")


def differences_table(comparison: Comparison) -> Table:
    """Return the differences in all measures that have a test."""
    measures = comparison.tested_measures
    rows = [
        [row.label, *(difference_cell(comparison, row, x) for x in measures)]
        for row in comparison.rows
        if row is not comparison.reference
    ]
    title = f"Differences from {comparison.reference.label}"
    return Table(title, [comparison.label_title, *(x.title for x in measures)], rows)


def length_tables(comparison: Comparison) -> Iterator[Table]:
    """Yield the means at the lengths that runs were scored at."""
    for metric, title in LENGTH_METRICS.items():
        values = {row: row.values_by_length(metric) for row in comparison.rows}
        lengths = sorted({length for points in values.values() for length in points})
        if not lengths:
            continue
        measure = Measure(metric, title, "lower", 3)
        rows = [
            [row.label, *(measure.format_mean(points.get(length, ())) for length in lengths)]
            for row, points in values.items()
            if points
        ]
        titles = [comparison.label_title, *(f"at {length}" for length in lengths)]
        yield Table(f"{title} by length", titles, rows)


def conditions_table(comparison: Comparison) -> Table:
    """Return what was the same in all rows, and what was not."""
    rows = [[x.name, CONDITION_STATES[x.equal], x.text] for x in find_conditions(comparison)]
    return Table("Conditions", ["condition", "state", "values"], rows, "llp")


def failures_table(runs: Sequence[Run]) -> Table:
    """Return the jobs without a result and their reasons."""
    rows = [
        [name, Cell(run.outcome, style="strong"), run.short_reason]
        for run, name in zip(runs, run_names(runs), strict=True)
        if run.outcome != "trained"
    ]
    return Table("Jobs without a result", ["job", "outcome", "reason"], rows, "llp")


def jobs_table(comparisons: Sequence[Comparison], runs: Sequence[Run]) -> Table:
    """Return all jobs with their outcomes, primary metrics and folders."""
    metrics = list(dict.fromkeys(x.primary_metric for x in comparisons))
    columns = ["job", "outcome", "reason", *(x.title for x in metrics), "seconds", "folder"]
    rows = [
        [
            name,
            Cell(run.outcome, style="strong"),
            run.short_reason or "–",
            *(Cell(x.format(run.results.get(x.key)), run.results.get(x.key)) for x in metrics),
            Cell("–" if run.seconds is None else f"{run.seconds:,.0f}", run.seconds),
            str(run.folder),
        ]
        for run, name in zip(runs, run_names(runs), strict=True)
    ]
    return Table(f"Jobs: {len(runs)}", columns, rows, f"llp{'r' * len(metrics)}rl")


def csv_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return all results that are one value, and the options that differ, for each run."""
    differing = sorted(differing_keys([run.options for run in runs if run.config]))
    return [
        {
            "folder": str(run.folder),
            "overrides": " ".join(run.overrides),
            "outcome": run.outcome,
            "reason": run.reason,
            **{f"config/{key}": run.options.get(key) for key in differing},
            "seed": run.seed,
            **dict(single_values(run)),
        }
        for run in runs
    ]


def single_values(run: Run) -> Iterator[tuple[str, Any]]:
    """Yield the results that fit a cell; those that are not finite by name."""
    not_finite = run.results.get("not_finite", {})
    for key, value in run.results.items():
        if key == "not_finite" or key in LONG_ENTRIES:
            continue
        if isinstance(value, dict):
            for inner, leaf in flatten(value):
                yield f"{key}/{inner}", leaf
        elif isinstance(value, list):
            yield key, json.dumps(value)
        else:
            yield key, not_finite.get(key, value)
