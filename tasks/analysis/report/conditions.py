"""What was equal between rows, and what was not: equal conditions are stated, not assumed."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from attention_zoo.tasks.analysis.report.comparison import Comparison, Row, unlabelled
from attention_zoo.tasks.analysis.report.measures import scaled
from attention_zoo.tasks.analysis.report.runs import Run
from attention_zoo.tasks.training.manifest import MATCH_TOLERANCE

RESIZED = "model.ffn_dim"  # what `match` chooses
NAMED = 4  # labels that are named, before the rest is counted


@dataclass(frozen=True)
class Condition:
    """One of them: True, where all rows had it; None, where that is not on record."""

    name: str
    equal: bool | None
    text: str


def conditions(comparison: Comparison) -> Iterator[Condition]:
    """All that a comparison rests on."""
    rows = comparison.rows
    yield seeds(rows)
    by, target = matched_by(rows)
    counts = sizes("parameters", rows, "parameters")
    if by == "parameters" and counts.equal is False:
        found = [x for row in rows for x in row.values("parameters")]
        counts = replace(counts, equal=all(abs(x / target - 1) <= MATCH_TOLERANCE for x in found))
    yield counts
    yield from matched(rows)
    yield tokens(rows)
    yield values("data", rows, "data_hash")
    yield data_order(rows)
    yield values("precision", rows, "precision")
    yield values("hardware", rows, "hardware")
    yield versions(rows)
    yield values("commit", rows, "git_commit")
    if comparison.primary_metric.test == "bootstrap":
        yield values("sacreBLEU", rows, "sacrebleu_signature")
    # What follows from matching is told by it.
    other = {key: x for key, x in unlabelled(comparison).items() if key != RESIZED or not by}
    yield Condition(
        "other options",
        not other,
        "; ".join(f"{key}: {', '.join(kinds)}" for key, kinds in other.items())
        or "what the labels do not tell is the same",
    )


def seeds(rows: list[Row]) -> Condition:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(", ".join(str(run.seed) for run in row.runs), []).append(row)
    return Condition("seeds", len(found) == 1, by_value(found, len(rows)))


def sizes(name: str, rows: list[Row], key: str) -> Condition:
    """Whether numbers are equal; if not, how far apart they are."""
    numbers = [x for row in rows for x in row.values(key)]
    if not numbers or lacks(rows, key):
        return unknown_name_message(name, rows, key)
    low, high = min(numbers), max(numbers)
    if low == high:
        return Condition(name, True, f"{low:,.0f}")
    apart = f", {100 * (high - low) / low:.1f} % apart" if low else ""
    return Condition(name, False, f"{scaled(low, 'count')} to {scaled(high, 'count')}{apart}")


def matched_by(rows: list[Row]) -> tuple[str | None, int]:
    """In what all models were made to agree with one baseline, if they were, and its figure."""
    found = [run.results.get("matched", {}) for run in every(rows)]
    kinds = {(x.get("by"), x.get("target", 0)) for x in found}
    return next(iter(kinds)) if len(kinds) == 1 else (None, 0)


def matched(rows: list[Row]) -> Iterator[Condition]:
    """To what the models were resized, where they were."""
    found = {json.dumps(run.results.get("matched", {}).get("by")) for run in every(rows)}
    if found == {"null"}:
        return
    targets = {run.results.get("matched", {}).get("target") for run in every(rows)}
    by = " and ".join(sorted(json.loads(x) or "nothing" for x in found))
    figures = " and ".join(scaled(x, "count") for x in sorted(x for x in targets if x))
    yield Condition("matched", matched_by(rows)[0] is not None, f"by {by}, within 1 % of {figures}")


def values(name: str, rows: list[Row], key: str) -> Condition:
    if lacks(rows, key):
        return unknown_name_message(name, rows, key)
    found: dict[str, list[Row]] = {}
    for row in rows:
        for run in row.runs:
            told = found.setdefault(plain(run.results[key]), [])
            if row not in told:
                told.append(row)
    return Condition(name, len(found) == 1, by_value(found, len(rows)))


def tokens(rows: list[Row]) -> Condition:
    """Batches of a seed may hold other numbers of tokens than those of another."""
    found = sizes("tokens seen", rows, "tokens_seen")
    if found.equal is False and not unequal_seeds(rows, "tokens_seen"):
        low, high = (f(x for row in rows for x in row.values("tokens_seen")) for f in (min, max))
        return Condition(found.name, True, f"{low:,.0f} to {high:,.0f}, seed by seed the same")
    return found


def data_order(rows: list[Row]) -> Condition:
    """Whether the runs of a seed saw the same batches in the same order."""
    if lacks(rows, "data_order"):
        return unknown_name_message("data order", rows, "data_order")
    if unequal := unequal_seeds(rows, "data_order"):
        return Condition("data order", False, unequal)
    return Condition("data order", True, "the same batches in the same order, seed by seed")


def unequal_seeds(rows: list[Row], key: str) -> str:
    """Under which seeds rows differ from the first, or what keeps them from being compared."""
    first = {run.seed: run.results[key] for run in rows[0].runs}
    unequal: set[str] = set()
    for row in rows[1:]:
        both = [run for run in row.runs if run.seed in first]
        if not both:
            return f"`{row.label}` has no seed in common with `{rows[0].label}`"
        unequal |= {str(run.seed) for run in both if run.results[key] != first[run.seed]}
    return f"other batches under seed {', '.join(sorted(unequal))}" if unequal else ""


def versions(rows: list[Row]) -> Condition:
    """Which packages differ."""
    if lacks(rows, "versions"):
        return unknown_name_message("versions", rows, "versions")
    kinds: dict[str, set[str]] = {}
    runs = every(rows)
    for package in {name for run in runs for name in run.results["versions"]}:
        kinds[package] = {run.results["versions"].get(package, "none") for run in runs}
    other = {name: kind for name, kind in sorted(kinds.items()) if len(kind) > 1}
    if other:
        told = (f"{name} {' and '.join(sorted(kind))}" for name, kind in other.items())
        return Condition("versions", False, "; ".join(told))
    shown = [f"{name} {kinds[name].pop()}" for name in ("python", "torch") if name in kinds]
    return Condition("versions", True, ", ".join([*shown, "and all other packages"]))


def every(rows: list[Row]) -> list[Run]:
    return [run for row in rows for run in row.runs]


def lacks(rows: list[Row], key: str) -> bool:
    return any(run.results.get(key) is None for run in every(rows))


def unknown_name_message(name: str, rows: list[Row], key: str) -> Condition:
    runs = every(rows)
    missing = sum(run.results.get(key) is None for run in runs)
    return Condition(name, None, f"not on record in {missing} of {len(runs)} runs")


def plain(value: Any) -> str:
    """A value of a manifest, short enough to read."""
    if isinstance(value, dict):  # hardware
        processor = ", ".join(value.get("gpus", [])) or value.get("cpu", "–")
        return f"{processor}, {value.get('threads', '–')} threads"
    text = str(value)
    return f"{text[:12]}…" if len(text) >= 40 and " " not in text and "|" not in text else text


def by_value(found: dict[str, list[Row]], count: int) -> str:
    """Each value with the rows that have it."""
    if len(found) == 1:
        return next(iter(found))
    told = []
    for value, rows in found.items():
        names = ", ".join(f"`{row.label}`" for row in rows[:NAMED])
        rest = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
        told.append(f"{value}: {'all rows' if len(rows) == count else names + rest}")
    return "; ".join(told)
