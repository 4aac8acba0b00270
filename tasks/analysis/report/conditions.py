"""The conditions of a comparison: what was the same in all rows, and what was not."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from attention_zoo.tasks.analysis.report.comparison import Comparison, Row, quote_labels
from attention_zoo.tasks.analysis.report.measures import format_with_unit
from attention_zoo.tasks.analysis.report.runs import Run
from attention_zoo.tasks.training.results import MATCHED_WITHIN

MATCHED_OPTION = "model.ffn_dim"  # the width that `match` chooses
MAX_LABELS = 4  # more labels are counted


@dataclass(frozen=True)
class Condition:
    """A condition: whether it was the same in all rows; None if that was not recorded."""

    name: str
    equal: bool | None
    text: str


def find_conditions(comparison: Comparison) -> Iterator[Condition]:
    """Yield the conditions of a comparison."""
    rows = comparison.rows
    yield compare_seeds(rows)
    matches = find_matches(rows)
    matched_by, target = next(iter(matches)) if len(matches) == 1 else (None, 0)
    parameters = compare_numbers("parameters", rows, "parameters")
    if matched_by == "parameters" and parameters.equal is False:
        counts = [x for row in rows for x in row.values("parameters")]
        within = all(abs(x / target - 1) <= MATCHED_WITHIN for x in counts)
        parameters = replace(parameters, equal=within)
    yield parameters
    if matches != {(None, 0)}:
        criteria = " and ".join(sorted({by or "nothing" for by, _ in matches}))
        targets = sorted({target for _, target in matches if target})
        numbers = " and ".join(format_with_unit(x, "count") for x in targets)
        text = f"by {criteria}, within {100 * MATCHED_WITHIN:.0f} % of {numbers}"
        yield Condition("matched", matched_by is not None, text)
    yield compare_tokens(rows)
    yield compare_values("data", rows, "data_hash")
    yield compare_data_order(rows)
    yield compare_values("precision", rows, "precision")
    yield compare_values("hardware", rows, "hardware")
    yield compare_versions(rows)
    yield compare_values("commit", rows, "git_commit")
    if comparison.primary_metric.test == "bootstrap":
        yield compare_values("sacreBLEU", rows, "sacrebleu_signature")
    options = comparison.unlabelled_options()
    if matched_by:
        options.pop(MATCHED_OPTION, None)
    differing = "; ".join(f"{key}: {', '.join(values)}" for key, values in options.items())
    yield Condition("other options", not options, differing or "the same in all rows")


def compare_seeds(rows: list[Row]) -> Condition:
    """Return whether the rows have the same seeds."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(", ".join(str(run.seed) for run in row.runs), []).append(row)
    return Condition("seeds", len(groups) == 1, describe_groups(groups, len(rows)))


def compare_numbers(name: str, rows: list[Row], key: str) -> Condition:
    """Return whether a number is the same in all rows; if not, its range."""
    numbers = [x for row in rows for x in row.values(key)]
    if not numbers or is_missing(rows, key):
        return not_recorded(name, rows, key)
    low, high = min(numbers), max(numbers)
    if low == high:
        return Condition(name, True, f"{low:,.0f}")
    percent = f", {100 * (high - low) / low:.1f} % apart" if low else ""
    span = f"{format_with_unit(low, 'count')} to {format_with_unit(high, 'count')}"
    return Condition(name, False, f"{span}{percent}")


def find_matches(rows: list[Row]) -> set[tuple[str | None, int]]:
    """Return by what models were matched to a baseline, with its value; (None, 0): unmatched."""
    matches = [run.results.get("matched", {}) for run in trained_runs(rows)]
    return {(match.get("by"), match.get("target", 0)) for match in matches}


def compare_values(name: str, rows: list[Row], key: str) -> Condition:
    """Return whether a result is the same in all runs."""
    if is_missing(rows, key):
        return not_recorded(name, rows, key)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        for text in dict.fromkeys(format_result(run.results[key]) for run in row.runs):
            groups.setdefault(text, []).append(row)
    return Condition(name, len(groups) == 1, describe_groups(groups, len(rows)))


def compare_tokens(rows: list[Row]) -> Condition:
    """Return whether the rows saw the same number of tokens, which may differ between seeds."""
    condition = compare_numbers("tokens seen", rows, "tokens_seen")
    if condition.equal is False and not compare_by_seed(rows, "tokens_seen"):
        numbers = [x for row in rows for x in row.values("tokens_seen")]
        text = f"{min(numbers):,.0f} to {max(numbers):,.0f}, the same in all rows for each seed"
        return Condition(condition.name, True, text)
    return condition


def compare_data_order(rows: list[Row]) -> Condition:
    """Return whether the runs of a seed saw the same batches in the same order."""
    if is_missing(rows, "data_order"):
        return not_recorded("data order", rows, "data_order")
    difference = compare_by_seed(rows, "data_order")
    same = "the same batches in the same order for each seed"
    return Condition("data order", not difference, difference or same)


def compare_by_seed(rows: list[Row], key: str) -> str:
    """Return for which seeds the rows differ from the first, or why they cannot be compared."""
    first = {run.seed: run.results[key] for run in rows[0].runs}
    unequal: set[str] = set()
    for row in rows[1:]:
        shared = [run for run in row.runs if run.seed in first]
        if not shared:
            return f"`{row.label}` has no seed in common with `{rows[0].label}`"
        unequal |= {str(run.seed) for run in shared if run.results[key] != first[run.seed]}
    return f"other batches with seed {', '.join(sorted(unequal))}" if unequal else ""


def compare_versions(rows: list[Row]) -> Condition:
    """Return whether the packages are the same; if not, which differ."""
    if is_missing(rows, "versions"):
        return not_recorded("versions", rows, "versions")
    installed = [run.results["versions"] for run in trained_runs(rows)]
    versions = {
        package: sorted({each.get(package, "none") for each in installed})
        for package in sorted({name for each in installed for name in each})
    }
    differing = [f"{name} {' and '.join(x)}" for name, x in versions.items() if len(x) > 1]
    if differing:
        return Condition("versions", False, "; ".join(differing))
    main = [f"{name} {versions[name][0]}" for name in ("python", "torch") if name in versions]
    return Condition("versions", True, ", ".join([*main, "and all other packages"]))


def trained_runs(rows: list[Row]) -> list[Run]:
    """Return the trained runs of all rows."""
    return [run for row in rows for run in row.runs]


def is_missing(rows: list[Row], key: str) -> bool:
    """Return whether any run lacks a result."""
    return any(run.results.get(key) is None for run in trained_runs(rows))


def not_recorded(name: str, rows: list[Row], key: str) -> Condition:
    """Return a condition that is unknown, as runs lack a result."""
    runs = trained_runs(rows)
    missing = sum(run.results.get(key) is None for run in runs)
    return Condition(name, None, f"not recorded in {missing} of {len(runs)} runs")


def format_result(value: Any) -> str:
    """Return a result as a short text."""
    if isinstance(value, dict):  # hardware
        processor = ", ".join(value.get("gpus", [])) or value.get("cpu", "–")
        return f"{processor}, {value.get('threads', '–')} threads"
    text = str(value)
    is_hash = len(text) >= 40 and " " not in text and "|" not in text
    return f"{text[:12]}…" if is_hash else text


def describe_groups(groups: dict[str, list[Row]], total: int) -> str:
    """Return each value with the labels of the rows that have it."""
    if len(groups) == 1:
        return next(iter(groups))
    parts = []
    for value, rows in groups.items():
        names = quote_labels(rows, MAX_LABELS)
        parts.append(f"{value}: {'all rows' if len(rows) == total else names}")
    return "; ".join(parts)
