"""Comparisons: runs that differ only in their seed are one row, and rows are compared."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from attention_zoo.errors import UserError
from attention_zoo.tasks.analysis.report.labels import (
    Options,
    differing_keys,
    format_value,
    label_options,
)
from attention_zoo.tasks.analysis.report.measures import COST, PER_TOKEN, QUALITY, Measure, mean
from attention_zoo.tasks.analysis.report.runs import Run
from attention_zoo.tasks.analysis.report.significance import Difference


@dataclass(eq=False)
class Row:
    """The runs of one configuration."""

    options: Options
    runs: list[Run] = field(default_factory=list)  # trained, by seed
    failed: list[Run] = field(default_factory=list)  # without a result
    label: str = ""  # the options that set the row apart from the others

    def values(self, key: str) -> list[float]:
        """Return a result for each seed that has it."""
        results = [run.results.get(key) for run in self.runs]
        return [x for x in results if isinstance(x, int | float)]

    def mean(self, key: str) -> float | None:
        """Return the mean of a result over the seeds that have it."""
        return mean(self.values(key))


@dataclass
class Comparison:
    """Rows of one task and data, best first."""

    title: str
    rows: list[Row]  # each has at least one trained run
    quality: list[Measure]  # the primary metric is first; those equal in all rows are last
    cost: list[Measure]
    reference: Row  # the row that the others are tested against
    reference_given: bool  # whether the user named the reference; otherwise it is the best row
    label_keys: list[str]  # the options that are in the labels
    label_title: str  # of a column of labels
    differences: dict[str, dict[Row, Difference]] = field(default_factory=dict)  # by measure's key

    @property
    def best(self) -> Row:
        """Return the row with the best primary metric."""
        return self.rows[0]

    @property
    def primary_metric(self) -> Measure:
        """Return the measure that ranks the rows."""
        return self.quality[0]

    def difference(self, row: Row, measure: Measure | None = None) -> Difference | None:
        """Return a row's difference in a measure or the primary metric; the reference has none."""
        return self.differences.get((measure or self.primary_metric).key, {}).get(row)

    def unlabelled_options(self) -> dict[str, list[str]]:
        """Return the values of options that differ between rows and are not in the labels.

        The options of a group whose choice differs are left out, as other choices lack them.
        """
        differing = differing_keys([row.options for row in self.rows])
        groups = {key.removeprefix("choices.").rpartition("@")[2] for key in differing}
        return {
            key: sorted({format_value(row.options.get(key)) for row in self.rows})
            for key in sorted(differing - {*self.label_keys})
            if not key.startswith("choices.") and key.partition(".")[0] not in groups
        }


def quote_labels(
    rows: Sequence[Row], limit: int, detail: Callable[[Row], str] | None = None
) -> str:
    """Return the labels of rows in backticks, with details; those beyond a limit are counted."""
    details = [f" ({detail(row)})" if detail else "" for row in rows[:limit]]
    labels = ", ".join(f"`{rows[i].label}`{text}" for i, text in enumerate(details))
    return f"{labels} and {len(rows) - limit} more" if len(rows) > limit else labels


def compare_runs(runs: Sequence[Run], baseline: str | None) -> list[Comparison]:
    """Group runs into a comparison for each task and data.

    Args:
        runs: trained or not.
        baseline: the label of the reference; None for the best row.

    Raises:
        UserError: no row has that label.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.config:
            choices = run.config.get("choices", {})
            title = f"{choices.get('task', '–')} on {choices.get('data', '–')}"
            groups.setdefault(title, []).append(run)
    compared = [compare_rows(title, group, baseline) for title, group in groups.items()]
    comparisons = [comparison for comparison in compared if comparison is not None]
    if baseline is not None and not any(x.reference_given for x in comparisons):
        labels = "; ".join(row.label for x in comparisons for row in x.rows)
        raise UserError(f"baseline must be the label of a row, got {baseline!r}. Rows: {labels}.")
    return comparisons


def compare_rows(title: str, runs: Sequence[Run], baseline: str | None) -> Comparison | None:
    """Return the comparison of runs of one task and data; None if no run has a result."""
    rows = [row for row in group_seeds(runs) if row.runs]
    quality = available_measures(rows, QUALITY)
    if tokenizers_differ(rows):
        quality = [x for x in quality if x.key not in PER_TOKEN] or quality
    if not quality:
        return None
    quality.sort(key=lambda measure: len({row.mean(measure.key) for row in rows}) == 1)
    labels = label_options([row.options for row in rows], swept_keys(runs))
    for row, label in zip(rows, labels.texts, strict=True):
        row.label = label
    sign = 1 if quality[0].better == "lower" else -1

    def rank(row: Row) -> tuple[bool, float]:
        value = row.mean(quality[0].key)
        return value is None, sign * (value or 0.0)

    rows.sort(key=rank)
    named = next((row for row in rows if row.label == baseline), None)
    return Comparison(
        title,
        rows,
        quality,
        available_measures(rows, COST),
        reference=named or rows[0],
        reference_given=named is not None,
        label_keys=labels.keys,
        label_title=labels.title,
    )


def group_seeds(runs: Sequence[Run]) -> list[Row]:
    """Return a row for each configuration."""
    rows: dict[str, Row] = {}
    for run in runs:
        row = rows.setdefault(json.dumps(run.options, sort_keys=True), Row(run.options))
        (row.runs if run.outcome == "trained" else row.failed).append(run)
    for row in rows.values():
        row.runs.sort(key=lambda run: str(run.seed))
    return list(rows.values())


def available_measures(rows: Sequence[Row], measures: Sequence[Measure]) -> list[Measure]:
    """Return the measures that any row has a value of."""
    return [each for each in measures if any(row.values(each.key) for row in rows)]


def tokenizers_differ(rows: Sequence[Row]) -> bool:
    """Return whether the rows do not share a tokenizer."""
    tokenizers = {
        tuple(sorted((k, str(v)) for k, v in row.options.items() if "tokenizer" in k.split(".")))
        for row in rows
    }
    return len(tokenizers) > 1


def swept_keys(runs: Sequence[Run]) -> list[str]:
    """Return the keys that sweeps varied, in the order of the command line."""
    keys: dict[str, None] = {}
    for run in runs:
        for override in run.overrides:
            name = override.lstrip("+~").partition("=")[0]
            keys |= {f"choices.{name}": None, name: None}
    return list(keys)
