"""Runs as rows: those that differ in the seed only are one, and are held against the others."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from attention_zoo.errors import UserError
from attention_zoo.tasks.analysis.report.measures import COST, PER_TOKEN, QUALITY, Measure, mean
from attention_zoo.tasks.analysis.report.runs import Run
from attention_zoo.tasks.analysis.report.significance import Difference, bootstrap, holm, welch

SIGNATURES = {"test/bleu": "sacrebleu_signature", "test/chrf": "chrf_signature"}
# Told by their bare words; the others by name=value.
BARE = ("choices.attention", "choices.position")


@dataclass
class Row:
    """Runs of one configuration.

    Args:
        options: what they share; see `Run.options`.
        runs: those that were trained, by seed.
        lost: those that ended otherwise.
        label: what sets it apart from the other rows.
    """

    options: Mapping[str, Any]
    runs: list[Run] = field(default_factory=list)
    lost: list[Run] = field(default_factory=list)
    label: str = ""

    def values(self, key: str) -> list[float]:
        """A figure of each seed that has it."""
        found = [run.results.get(key) for run in self.runs]
        return [x for x in found if isinstance(x, int | float)]

    def mean(self, key: str) -> float | None:
        return mean(self.values(key))


@dataclass
class Comparison:
    """Rows of one task and data, best first.

    Args:
        title: task and data.
        rows: with at least one trained run each.
        quality: the measures that the rows have; the first decides. Those in which all rows are
            alike come last.
        cost: likewise.
        reference: the row that the others are tested against.
        labelled: the options that the labels tell.
        chosen: whether the user named the reference; else it is the best row.
        differences: of each measure with a test, one a row; none of the reference.
    """

    title: str
    rows: list[Row]
    quality: list[Measure]
    cost: list[Measure]
    reference: Row
    labelled: list[str]
    chosen: bool
    differences: dict[str, list[Difference | None]] = field(default_factory=dict)

    @property
    def best(self) -> Row:
        return self.rows[0]

    @property
    def primary_metric(self) -> Measure:
        return self.quality[0]

    def difference(self, row: Row) -> Difference | None:
        """In the measure that decides."""
        return self.differences[self.primary_metric.key][self.rows.index(row)]


def compare(runs: Sequence[Run], baseline: str | None) -> list[Comparison]:
    """Rows by task and data: what is trained on other data is another comparison.

    Args:
        baseline: the label of the reference; None for the best row.

    Raises:
        UserError: if no row has that label.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.config:
            choices = run.config.get("choices", {})
            title = f"{choices.get('task', '–')} on {choices.get('data', '–')}"
            groups.setdefault(title, []).append(run)
    comparisons = []
    for title, group in groups.items():
        rows = [row for row in rows_of(group) if row.runs]
        quality = measures_of(rows, QUALITY)
        if rows and other_tokens(rows):
            quality = [x for x in quality if x.key not in PER_TOKEN] or quality
        if not quality:
            continue
        quality.sort(key=lambda measure: len({row.mean(measure.key) for row in rows}) == 1)
        labelled = label_rows(rows, sweep_keys(group))
        first = quality[0]
        sign = 1 if first.better == "lower" else -1
        rows.sort(key=lambda row: rank(row, first.key, sign))
        named = next((row for row in rows if row.label == baseline), None)
        cost = measures_of(rows, COST)
        comparisons.append(
            Comparison(title, rows, quality, cost, named or rows[0], labelled, named is not None)
        )
    if baseline is not None and not any(x.chosen for x in comparisons):
        labels = "; ".join(row.label for x in comparisons for row in x.rows)
        raise UserError(f"baseline must be the label of a row, got {baseline!r}. Rows: {labels}.")
    return comparisons


def rank(row: Row, key: str, sign: int) -> tuple[bool, float]:
    value = row.mean(key)
    return value is None, sign * (value or 0.0)


def rows_of(runs: Sequence[Run]) -> list[Row]:
    rows: dict[str, Row] = {}
    for run in runs:
        row = rows.setdefault(json.dumps(run.options, sort_keys=True), Row(run.options))
        (row.runs if run.outcome == "trained" else row.lost).append(run)
    for row in rows.values():
        row.runs.sort(key=lambda run: str(run.seed))
    return list(rows.values())


def measures_of(rows: Sequence[Row], measures: Sequence[Measure]) -> list[Measure]:
    """Those that any row has."""
    return [each for each in measures if any(row.values(each.key) for row in rows)]


def other_tokens(rows: Sequence[Row]) -> bool:
    """Whether the rows do not share a tokenizer."""
    kinds = {
        tuple(sorted((k, str(v)) for k, v in row.options.items() if "tokenizer" in k.split(".")))
        for row in rows
    }
    return len(kinds) > 1


def sweep_keys(runs: Sequence[Run]) -> list[str]:
    """What the sweeps varied, as keys of `Run.options`, in the order of the command line."""
    keys: dict[str, None] = {}
    for run in runs:
        for word in run.overrides:
            name = word.lstrip("+~").partition("=")[0]
            keys |= {f"choices.{name}": None, name: None}
    return list(keys)


def label_rows(rows: Sequence[Row], swept: Sequence[str]) -> list[str]:
    """Give each row the values that set it apart: those that a sweep varied, and as many others as
    it takes until no two rows are called alike. Returns which options these are.
    """
    differing = differing_keys(rows)
    chosen = [key for key in swept if key in differing]
    rest = sorted(differing - {*chosen}, key=prominence)
    if not differing:
        chosen, rest = [key for key in BARE if key in rows[0].options], []
    for key in rest:
        if len(kinds(rows, [*chosen, key])) > len(kinds(rows, chosen)):
            chosen.append(key)
    chosen.sort(key=lambda key: (not key.startswith("choices."), prominence(key)))
    names, bare = short_names(chosen), told_bare(rows, chosen)
    for row in rows:
        parts = [
            str(row.options.get(key)) if key in bare else f"{names[key]}={told(row.options, key)}"
            for key in chosen
        ]
        # A backtick would end the label where it is quoted.
        row.label = " ".join(parts).replace("`", "'") or "the run"
    return chosen


def told_bare(rows: Sequence[Row], chosen: Sequence[str]) -> Sequence[str]:
    """Of the options that labels tell, those whose values speak for themselves: `BARE`, and a
    choice that is the only one, which then heads the labels.
    """
    alone = len(chosen) == 1 and chosen[0].startswith("choices.")
    words = all(isinstance(row.options.get(key), str) for row in rows for key in chosen)
    return chosen if alone and words else BARE


def heading(comparison: Comparison) -> str:
    """What the labels of the rows are."""
    labelled = comparison.labelled
    alone = len(labelled) == 1 and told_bare(comparison.rows, labelled) == labelled
    return short_names(labelled)[labelled[0]] if alone else "run"


def told(options: Mapping[str, Any], key: str) -> str:
    """A value as it is written in an override."""
    value = options.get(key)
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def prominence(key: str) -> tuple[int, str]:
    """Sorts what is chosen before its options, and what the zoo is about before all."""
    order = (*BARE, "choices.attention@", "choices.", "model.")
    return next((n for n, start in enumerate(order) if key.startswith(start)), len(order)), key


def kinds(rows: Sequence[Row], keys: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(str(row.options.get(key)) for key in keys) for row in rows}


def differing_keys(rows: Sequence[Row]) -> set[str]:
    keys = {key for row in rows for key in row.options}
    return {key for key in keys if len(kinds(rows, [key])) > 1}


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last word of a key, where no other key has the same: lr for optimizer.lr."""
    last = {key: key.replace("@", ".").rpartition(".")[2] for key in keys}
    words = list(last.values())
    return {
        key: word if words.count(word) == 1 else key.removeprefix("choices.")
        for key, word in last.items()
    }


def unlabelled(comparison: Comparison) -> dict[str, list[str]]:
    """Options that differ between rows and that no label tells, with their values.

    The options of a group whose choice differs are left out, as no other choice has them.
    """
    differing = differing_keys(comparison.rows)
    chosen = {key.removeprefix("choices.").rpartition("@")[2] for key in differing}
    return {
        key: sorted({told(row.options, key) for row in comparison.rows})
        for key in sorted(differing - {*comparison.labelled})
        if not key.startswith("choices.") and key.partition(".")[0] not in chosen
    }


def run_tests(comparison: Comparison, advance: Callable[[], None]) -> None:
    """Test all rows against the reference, in each measure that has a test.

    Args:
        advance: called after each test.
    """
    outputs = {id(row): outputs_of(row) for row in comparison.rows}
    reference = comparison.reference
    for measure in comparison.quality:
        if measure.test is None:
            continue
        found = []
        others = [row for row in comparison.rows if row is not reference]
        for row in others:
            if measure.test == "welch":
                found.append(welch(row.values(measure.key), reference.values(measure.key)))
            else:
                found.append(paired(measure.key, row, reference, outputs))
            advance()
        corrected = iter(holm(found))
        comparison.differences[measure.key] = [
            None if row is reference else next(corrected) for row in comparison.rows
        ]


def count_tests(comparison: Comparison) -> int:
    return sum(x.test is not None for x in comparison.quality) * (len(comparison.rows) - 1)


def outputs_of(row: Row) -> dict[int | None, list[dict[str, str]]]:
    found = {run.seed: run.outputs() for run in row.runs}
    return {seed: lines for seed, lines in found.items() if lines is not None}


def paired(key: str, row: Row, reference: Row, outputs: Mapping[int, Any]) -> Difference:
    """A bootstrap over the sentences, of the difference between the means over seeds."""
    ours, theirs = row.mean(key), reference.mean(key)
    if ours is None or theirs is None:
        return Difference(None, lacking="no figure")
    told_by = {run.results.get(SIGNATURES[key]) for each in (row, reference) for run in each.runs}
    if len(told_by) > 1:
        return Difference(ours - theirs, lacking="other sacreBLEU settings: no test")
    signature = told_by.pop()
    if signature is None:
        return Difference(ours - theirs, lacking="no sacreBLEU signature: no test")
    found = bootstrap(
        key, signature, outputs[id(row)], outputs[id(reference)], resamples=resamples(len(outputs))
    )
    # The amount shown is that of the table's means; the test's is of all seeds scored together.
    return Difference(ours - theirs, found.p, None, found.lacking, found.signature)


def resamples(rows: int) -> int:
    """Of a bootstrap: as many as make the lowest p significant after correction over the rows."""
    return max(1000, 100 * rows)


def outcomes(comparison: Comparison) -> Iterator[tuple[str, list[Row]]]:
    """Rows by what the test says of them: better, worse, open, untested."""
    first = comparison.primary_metric
    good = 1 if first.better == "higher" else -1
    groups: dict[str, list[Row]] = {"better": [], "worse": [], "open": [], "untested": []}
    for row in comparison.rows:
        if row is comparison.reference:
            continue
        found = comparison.difference(row)
        assert found is not None
        if found.adjusted is None:
            groups["untested"].append(row)
        elif not found.significant:
            groups["open"].append(row)
        else:
            groups["better" if good * (found.amount or 0) > 0 else "worse"].append(row)
    yield from groups.items()
