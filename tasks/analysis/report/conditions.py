"""The conditions of a comparison: what was the same in all rows, and what was not."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from attention_zoo.tasks.analysis.report.comparison import Comparison, Row, quote_labels
from attention_zoo.tasks.analysis.report.measures import format_with_unit
from attention_zoo.tasks.training.manifest import MATCH_TOLERANCE
from attention_zoo.tasks.wording import pluralize

MATCHED_OPTION = "model.ffn_dim"  # the width that `match` chooses


class Condition(NamedTuple):
    """A condition, whether it was the same in all rows (None if unknown), and its values."""

    name: str
    equal: bool | None
    text: str


def find_conditions(comparison: Comparison) -> Iterator[Condition]:
    """Yield the conditions of a comparison."""
    rows = comparison.rows
    seeds = {row: [", ".join(str(run.seed) for run in row.runs)] for row in rows}
    yield Condition("seeds", *compare_texts(seeds))
    matches = find_matches(rows)
    if matches != {(None, 0)}:
        yield Condition("matched", len(matches) == 1, describe_matches(matches))
    runs = [run for row in rows for run in row.runs]
    for name, key, compare in COMPARED:
        if name == "sacreBLEU" and comparison.primary_metric.test != "bootstrap":
            continue
        if missing := sum(run.results.get(key) is None for run in runs):
            of_runs = f"{missing} of {pluralize(len(runs), 'run')}"
            yield Condition(name, None, f"not recorded in {of_runs}")
        else:
            yield Condition(name, *compare(rows, key))
    options = comparison.unlabelled_options()
    if len(matches) == 1 and matches != {(None, 0)}:
        options.pop(MATCHED_OPTION, None)
    differing = "; ".join(f"{key}: {', '.join(values)}" for key, values in options.items())
    yield Condition("other options", not options, differing or "the same in all rows")


def find_matches(rows: list[Row]) -> set[tuple[str | None, int]]:
    """Return what models were matched by, and to which value; (None, 0) if they were not."""
    matches = [run.results.get("matched", {}) for row in rows for run in row.runs]
    return {(match.get("by"), match.get("target", 0)) for match in matches}


def describe_matches(matches: set[tuple[str | None, int]]) -> str:
    """Return "by parameters, within 1 % of 1 M"."""
    criteria = " and ".join(sorted({by or "nothing" for by, _ in matches}))
    targets = sorted({target for _, target in matches if target})
    numbers = " and ".join(format_with_unit(x, "count") for x in targets)
    return f"by {criteria}, within {100 * MATCH_TOLERANCE:.0f} % of {numbers}"


def compare_parameters(rows: list[Row], key: str) -> tuple[bool, str]:
    """Return whether the rows have as many parameters, or as many as they were matched to."""
    equal, text = compare_numbers(rows, key)
    matches = find_matches(rows)
    if {by for by, _ in matches} == {"parameters"} and len(matches) == 1:
        ((_, target),) = matches
        equal = all(abs(x / target - 1) <= MATCH_TOLERANCE for row in rows for x in row.values(key))
    return equal, text


def compare_numbers(rows: list[Row], key: str) -> tuple[bool, str]:
    """Return whether a number is the same in all rows, and its range."""
    numbers = [x for row in rows for x in row.values(key)]
    low, high = min(numbers), max(numbers)
    if low == high:
        return True, f"{low:,.0f}"
    percent = f", {100 * (high - low) / low:.1f} % apart" if low else ""
    return False, f"{format_with_unit(low, 'count')} to {format_with_unit(high, 'count')}{percent}"


def compare_tokens(rows: list[Row], key: str) -> tuple[bool, str]:
    """Return whether the rows saw the same number of tokens, which may differ between seeds."""
    equal, text = compare_numbers(rows, key)
    if equal or differing_seeds(rows, key):
        return equal, text
    numbers = [x for row in rows for x in row.values(key)]
    return True, f"{min(numbers):,.0f} to {max(numbers):,.0f}, the same in all rows for each seed"


def compare_data_order(rows: list[Row], key: str) -> tuple[bool, str]:
    """Return whether the runs of a seed saw the same batches in the same order."""
    difference = differing_seeds(rows, key)
    return not difference, difference or "the same batches in the same order for each seed"


def differing_seeds(rows: list[Row], key: str) -> str:
    """Return for which seeds the rows differ from the first, or why they cannot be compared."""
    first = {run.seed: run.results[key] for run in rows[0].runs}
    seeds: set[str] = set()
    for row in rows[1:]:
        shared = [run for run in row.runs if run.seed in first]
        if not shared:
            return f"`{row.label}` has no seed in common with `{rows[0].label}`"
        seeds |= {str(run.seed) for run in shared if run.results[key] != first[run.seed]}
    return f"other batches with seed {', '.join(sorted(seeds))}" if seeds else ""


def compare_values(rows: list[Row], key: str) -> tuple[bool, str]:
    """Return whether a result is the same in all runs, and its values."""
    return compare_texts({row: [format_result(x.results[key]) for x in row.runs] for row in rows})


def compare_versions(rows: list[Row], key: str) -> tuple[bool, str]:
    """Return whether the packages are the same, and which differ."""
    installed = [run.results[key] for row in rows for run in row.runs]
    versions = {
        package: sorted({each.get(package, "none") for each in installed})
        for package in sorted({name for each in installed for name in each})
    }
    differing = [f"{name} {' and '.join(x)}" for name, x in versions.items() if len(x) > 1]
    if differing:
        return False, "; ".join(differing)
    main = [f"{name} {versions[name][0]}" for name in ("python", "torch") if name in versions]
    return True, ", ".join([*main, "and all other packages"])


def format_result(value: Any) -> str:
    """Return a result as a short text."""
    if isinstance(value, dict):  # hardware
        processor = ", ".join(value.get("gpus", [])) or value.get("cpu", "–")
        threads = value.get("threads")
        return f"{processor}, {'– threads' if threads is None else pluralize(threads, 'thread')}"
    text = str(value)
    is_hash = len(text) >= 40 and " " not in text and "|" not in text
    return f"{text[:12]}…" if is_hash else text


def compare_texts(texts_by_row: dict[Row, list[str]]) -> tuple[bool, str]:
    """Return whether all rows have the same text, and each text with the rows that have it."""
    groups: dict[str, list[Row]] = {}
    for row, texts in texts_by_row.items():
        for text in dict.fromkeys(texts):
            groups.setdefault(text, []).append(row)
    if len(groups) == 1:
        return True, next(iter(groups))
    labels = {
        text: "all rows" if len(rows) == len(texts_by_row) else quote_labels(rows, limit=4)
        for text, rows in groups.items()
    }
    return False, "; ".join(f"{text}: {rows}" for text, rows in labels.items())


# Name, key of the results, and how the rows are compared.
COMPARED: tuple[tuple[str, str, Callable[[list[Row], str], tuple[bool, str]]], ...] = (
    ("parameters", "parameters", compare_parameters),
    ("tokens seen", "tokens_seen", compare_tokens),
    ("data", "data_hash", compare_values),
    ("data order", "data_order", compare_data_order),
    ("precision", "precision", compare_values),
    ("hardware", "hardware", compare_values),
    ("versions", "versions", compare_versions),
    ("commit", "git_commit", compare_values),
    ("sacreBLEU", "sacrebleu_signature", compare_values),
)
