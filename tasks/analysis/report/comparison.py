"""Comparisons: runs that differ only in their seed are one row, and rows are compared.

The label of a row is made of the options that set it apart from the other rows.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from attention_zoo.errors import UserError
from attention_zoo.tasks.analysis.length_report import all_lengths, length_metric, score_at
from attention_zoo.tasks.analysis.report.measures import COST, PER_TOKEN, QUALITY, Measure
from attention_zoo.tasks.analysis.report.runs import Run

Options = Mapping[str, Any]  # by flat keys; see `Run.options`

# What a test draws its conclusion from: what would have to be other for another result.
Evidence = Literal["seeds", "test sentences", "seeds and test sentences"]

SIGNIFICANCE_LEVEL = 0.05
# Labels show the values of these without the names of the options.
VALUE_ONLY = ("choices.attention", "choices.position")
# Options come in the order of these prefixes, others last.
PREFIXES = (*VALUE_ONLY, "choices.attention@", "choices.", "model.")


@dataclass(eq=False)
class Row:
    """The runs of one configuration."""

    options: Options
    runs: list[Run] = field(default_factory=list)  # trained, by seed
    failed: list[Run] = field(default_factory=list)  # without a result
    label: str = ""

    def values(self, key: str) -> list[float]:
        """Return a result for each seed that has it."""
        results = [run.results.get(key) for run in self.runs]
        return [x for x in results if isinstance(x, int | float)]

    def mean(self, key: str) -> float | None:
        """Return the mean of a result over the seeds that have it."""
        values = self.values(key)
        return fmean(values) if values else None

    def values_by_length(self, metric: str) -> dict[int, list[float]]:
        """Return the finite values of a metric for the seeds at each length, by length."""
        values: dict[int, list[float]] = {}
        for run in self.runs:
            if "lengths" not in run.results or length_metric(run.results) != metric:
                continue
            for length in all_lengths(run.results):
                value = score_at(run.results, metric, length)
                if value is not None and math.isfinite(value):
                    values.setdefault(length, []).append(value)
        return dict(sorted(values.items()))


@dataclass(frozen=True)
class Difference:
    """A row's mean minus that of the reference, and a two-sided test of it."""

    delta: float | None  # in units of the measure; None if either row has no value
    p_value: float | None = None  # None if there is no test
    adjusted_p_value: float | None = None  # corrected for the number of tests
    untested_reason: str = ""
    evidence: Evidence | None = None  # None if there is no test
    t: float = 0.0  # without its sign
    freedom: float = 1.0  # of t
    is_due_to_floor: bool = False  # whether it is not significant because the variance has a floor

    @property
    def tested(self) -> bool:
        """Return whether there is a test."""
        return self.p_value is not None

    @property
    def significant(self) -> bool:
        """Return whether the adjusted p value is below the level."""
        return self.adjusted_p_value is not None and self.adjusted_p_value < SIGNIFICANCE_LEVEL

    @property
    def similar(self) -> bool:
        """Return whether a test found no significant difference."""
        return self.adjusted_p_value is not None and not self.significant

    @property
    def p_text(self) -> str:
        """Return the adjusted p value, or the reason why there is none.

        "floor" follows where the difference would be significant without a floor of the variance.
        """
        if self.adjusted_p_value is None:
            return self.untested_reason
        p_value = self.adjusted_p_value
        text = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
        if self.evidence == "test sentences":
            return f"{text}, one seed"
        return f"{text}, floor" if self.is_due_to_floor else text

    @property
    def test_result(self) -> str:
        """Return the p value, with n.s. if the difference is not significant."""
        return f"n.s., {self.p_text}" if self.similar else self.p_text


@dataclass
class Comparison:
    """Rows of one task and data, best first."""

    title: str
    rows: list[Row]  # each has at least one trained run
    quality: list[Measure]  # the primary metric is first; those equal in all rows are last
    cost: list[Measure]
    reference: Row  # the row that the others are tested against
    reference_given: bool  # the user named the reference; otherwise it is the best row
    label_keys: list[str]  # the options that are in the labels
    label_title: str  # of a column of labels
    differences: dict[str, dict[Row, Difference]] = field(default_factory=dict)  # by measure's key
    # What the choice of the learning rate adds to the variance of a row's mean quality, as a share
    # of the variance over seeds; 0 where rates were not chosen by results.
    tuning_variance: float = 0.0
    # The least variance over seeds that a row counts with in the tests, by the measure's key.
    variance_floors: dict[str, float] = field(default_factory=dict)

    @property
    def best(self) -> Row:
        """Return the row with the best primary metric."""
        return self.rows[0]

    @property
    def primary_metric(self) -> Measure:
        """Return the measure that ranks the rows."""
        return self.quality[0]

    @property
    def tested_measures(self) -> list[Measure]:
        """Return the measures of quality and cost that have a test."""
        return [x for x in (*self.quality, *self.cost) if x.test is not None]

    def difference(self, row: Row, measure: Measure | None = None) -> Difference | None:
        """Return a row's difference in a measure or the primary metric; the reference has none."""
        return self.differences.get((measure or self.primary_metric).key, {}).get(row)

    def unlabelled_options(self) -> dict[str, list[str]]:
        """Return the values of options that differ between rows and are not in the labels.

        The options of a group whose choice differs are left out, as other choices lack them. So are
        those of a kind of layers that some rows lack, and the patterns that `stack.pattern`
        decides.
        """
        differing = differing_keys([row.options for row in self.rows])
        groups = {key.removeprefix("choices.").rpartition("@")[2] for key in differing}
        return {
            key: sorted({format_value(row.options.get(key)) for row in self.rows})
            for key in sorted(differing - {*self.label_keys})
            if not key.startswith("choices.") and key.partition(".")[0] not in groups
            if not (key.startswith("stack.") and self.follows_from_pattern(key))
        }

    def follows_from_pattern(self, key: str) -> bool:
        """Return whether an option of a stack differs because the pattern does."""
        is_lacking = any(key not in row.options for row in self.rows)
        return is_lacking or (key.endswith("_pattern") and "stack.pattern" in self.label_keys)


def compare_runs(runs: Sequence[Run], baseline: str | None) -> list[Comparison]:
    """Group runs, trained or not, into a comparison for each task and data.

    The reference is the row whose label is `baseline`; None is the best row.

    Raises:
        UserError: no row has that label.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.config:
            choices = run.config.get("choices", {})
            title = f"{choices.get('task', '–')} on {choices.get('data', '–')}"
            groups.setdefault(title, []).append(run)
    compared = (compare_rows(title, group, baseline) for title, group in groups.items())
    comparisons = list(filter(None, compared))
    if baseline is not None and not any(x.reference_given for x in comparisons):
        labels = "; ".join(row.label for x in comparisons for row in x.rows)
        raise UserError(f"baseline must be the label of a row, got {baseline!r}. Rows: {labels}.")
    return comparisons


def compare_rows(title: str, runs: Sequence[Run], baseline: str | None) -> Comparison | None:
    """Return the comparison of runs of one task and data; None if no run has a result."""
    rows = [row for row in group_seeds(runs) if row.runs]
    quality = available_measures(rows, QUALITY)
    if any("tokenizer" in key.split(".") for key in differing_keys([x.options for x in rows])):
        quality = [x for x in quality if x.key not in PER_TOKEN] or quality
    if not quality:
        return None
    quality = equal_last(quality, rows)
    label_keys, label_title = label_rows(rows, runs)
    means = {row: row.mean(quality[0].key) for row in rows}
    sign = 1 if quality[0].better == "lower" else -1
    rows.sort(key=lambda row: (means[row] is None, sign * (means[row] or 0.0)))
    named = next((row for row in rows if row.label == baseline), None)
    return Comparison(
        title,
        rows,
        quality,
        available_measures(rows, COST),
        reference=named or rows[0],
        reference_given=named is not None,
        label_keys=label_keys,
        label_title=label_title,
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


def equal_last(measures: Sequence[Measure], rows: Sequence[Row]) -> list[Measure]:
    """Return the measures with those last whose means are equal in all rows."""
    return sorted(measures, key=lambda measure: len({row.mean(measure.key) for row in rows}) == 1)


def label_rows(rows: Sequence[Row], runs: Sequence[Run]) -> tuple[list[str], str]:
    """Label rows by their options, among them those that the sweeps of the runs varied.

    Return the keys of the options in the labels, and a title for a column of labels.
    """
    keys = choose_keys([row.options for row in rows], runs)
    names = short_names(keys)
    single_choice = (
        len(keys) == 1
        and keys[0].startswith("choices.")
        and all(isinstance(row.options.get(keys[0]), str) for row in rows)
    )
    value_only = keys if single_choice else VALUE_ONLY
    for row in rows:
        values = {key: row.options.get(key) for key in keys}
        label = " ".join(
            str(value) if key in value_only else f"{names[key]}={format_value(value)}"
            for key, value in values.items()
            if key in row.options or not is_of_choice(key, keys)
        )
        # A backtick would end the label where it is quoted.
        row.label = label.replace("`", "'") or "the run"
    return keys, names[keys[0]] if single_choice else "run"


def is_of_choice(key: str, keys: Sequence[str]) -> bool:
    """Return whether a key is an option of a group whose choice is among the keys: others lack it.

    Such is `attention.temperature` beside `choices.attention`.
    """
    group = key.rpartition(".")[0]
    return f"choices.{group}" in keys or f"choices.attention@{group}" in keys


def choose_keys(rows: Sequence[Options], runs: Sequence[Run]) -> list[str]:
    """Return the keys of differing options that sweeps varied, and others until labels differ."""
    differing = differing_keys(rows)
    if not differing:
        return [key for key in VALUE_ONLY if key in rows[0]]
    overridden = [x.lstrip("+~").partition("=")[0] for run in runs for x in run.overrides]
    swept = dict.fromkeys(key for name in overridden for key in (f"choices.{name}", name))
    keys = [key for key in swept if key in differing]
    for key in sorted(differing - {*keys}, key=display_order):
        if len(distinct_values(rows, [*keys, key])) > len(distinct_values(rows, keys)):
            keys.append(key)
    return sorted(keys, key=lambda key: (not key.startswith("choices."), display_order(key)))


def display_order(key: str) -> tuple[int, str]:
    """Return what keys are sorted by: choices come before their options."""
    matches = (number for number, prefix in enumerate(PREFIXES) if key.startswith(prefix))
    return next(matches, len(PREFIXES)), key


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the last word of each key if no other key has the same: lr for optimizer.lr."""
    words = [key.replace("@", ".").rpartition(".")[2] for key in keys]
    return {
        key: word if words.count(word) == 1 else key.removeprefix("choices.")
        for key, word in zip(keys, words, strict=True)
    }


def format_value(value: Any) -> str:
    """Return a value as it is written in an override."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def differing_keys(rows: Sequence[Options]) -> set[str]:
    """Return the keys of the options that are not the same in all rows."""
    keys = {key for row in rows for key in row}
    return {key for key in keys if len(distinct_values(rows, [key])) > 1}


def distinct_values(rows: Sequence[Options], keys: Sequence[str]) -> set[tuple[str, ...]]:
    """Return the combinations of values that the options of these keys have."""
    return {tuple(str(row.get(key)) for key in keys) for row in rows}


def quote_labels(
    rows: Sequence[Row], limit: int, detail: Callable[[Row], str] | None = None
) -> str:
    """Return the labels of rows in backticks, with details; those beyond a limit are counted."""
    labels = [f"`{x.label}`" + (f" ({detail(x)})" if detail else "") for x in rows[:limit]]
    more = f" and {len(rows) - limit} more" if len(rows) > limit else ""
    return ", ".join(labels) + more
