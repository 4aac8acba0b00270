"""The sentences of a report: which row is best, how certain that is, and what it costs.

Labels are quoted in backticks, as in Markdown.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from attention_zoo.tasks.analysis.report.comparison import (
    SIGNIFICANCE_LEVEL,
    Comparison,
    Row,
    quote_labels,
)
from attention_zoo.tasks.analysis.report.conditions import find_conditions
from attention_zoo.tasks.analysis.report.measures import Measure
from attention_zoo.tasks.analysis.report.runs import Run
from attention_zoo.tasks.analysis.report.significance import count_resamples

MAX_LABELS = 6  # of a sentence; more are counted
OUTCOMES = ("trained", "refused", "diverged", "failed", "killed", "not run", "unfinished")
COSTS = ("tokens_per_second", "peak_memory_bytes", "parameters", "decode_state_bytes", "seconds")
CHEAPEST = {
    "tokens_per_second": "trains fastest",
    "peak_memory_bytes": "takes the least memory",
    "decode_state_bytes": "has the smallest decode state",
}
LEVEL = f"{100 * SIGNIFICANCE_LEVEL:.0f} % level"


def count_outcomes(runs: Sequence[Run]) -> str:
    """Return "12 jobs: 9 trained, 1 refused, 1 diverged, 1 killed"."""
    counts = Counter(run.outcome for run in runs)
    outcomes = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
    return f"{len(runs)} job{'s' * (len(runs) != 1)}: {outcomes}"


def summarize(comparison: Comparison) -> Iterator[str]:
    """Yield the sentences at the head of a report."""
    best, reference, metric = comparison.best, comparison.reference, comparison.primary_metric
    extreme = "highest" if metric.better == "higher" else "lowest"
    equal = [row for row in comparison.rows if row.mean(metric.key) == best.mean(metric.key)]
    have = f"{quote_labels(equal, MAX_LABELS)} {'has' if len(equal) == 1 else 'have'}"
    yield f"{have} the {extreme} {metric.title}: {describe_mean(best, metric)}."
    if comparison.reference_given and reference is not best:
        yield f"The reference, `{reference.label}`, has {describe_mean(reference, metric)}."
    yield from summarize_tests(comparison)
    costs = [
        f"{x.format(best.mean(x.key))} {x.title}"
        for x in comparison.cost
        if x.key in COSTS and best.values(x.key)
    ]
    if costs:
        yield f"Cost of `{best.label}`: {', '.join(costs)}."
    yield from summarize_savings(comparison)
    if incomplete := [row for row in comparison.rows if row.failed]:
        labels = quote_labels(incomplete, len(incomplete), describe_failures)
        yield f"Means are over the trained seeds. Seeds without a result: {labels}."
    if unequal := [x.name for x in find_conditions(comparison) if x.equal is False]:
        yield f"The rows differ in these conditions: {', '.join(unequal)}."


def describe_mean(row: Row, measure: Measure) -> str:
    """Return mean, standard deviation and number of seeds."""
    values = row.values(measure.key)
    seeds = "one seed" if len(values) == 1 else f"{len(values)} seeds"
    return f"{measure.format_mean(values)} ({seeds})"


def describe_failures(row: Row) -> str:
    """Return "1 of 3 diverged"."""
    outcomes = " or ".join(sorted({run.outcome for run in row.failed}))
    return f"{len(row.failed)} of {len(row.failed) + len(row.runs)} {outcomes}"


def rows_by_outcome(comparison: Comparison) -> dict[str, list[Row]]:
    """Group rows by their test of the primary metric: better, worse, similar, or why untested."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in comparison.rows:
        if (difference := comparison.difference(row)) is None:  # the reference
            continue
        improved = comparison.primary_metric.improves(difference.delta or 0.0)
        outcome = ("better" if improved else "worse") if difference.significant else "similar"
        tested = difference.adjusted_p_value is not None
        groups[outcome if tested else difference.untested_reason].append(row)
    return groups


def summarize_tests(comparison: Comparison) -> Iterator[str]:
    """Yield how the rows differ from the reference."""

    def p_text(row: Row) -> str:
        difference = comparison.difference(row)
        return difference.p_text if difference else ""

    groups = rows_by_outcome(comparison)
    reference = f"`{comparison.reference.label}`"
    for outcome in ("better", "worse"):
        if rows := groups.pop(outcome, []):
            labels = quote_labels(rows, MAX_LABELS)
            yield f"Significantly {outcome} than {reference}, at the {LEVEL}: {labels}."
    if rows := groups.pop("similar", []):
        labels = quote_labels(rows, MAX_LABELS, p_text)
        yield f"Not significantly different from {reference}: {labels}."
    for reason, rows in groups.items():
        all_others = len(rows) == len(comparison.rows) - 1
        labels = "the other rows" if all_others else quote_labels(rows, MAX_LABELS)
        chance = "The differences may be due to chance."
        yield f"Not tested against {reference} ({reason}): {labels}. {chance}"


def summarize_savings(comparison: Comparison) -> Iterator[str]:
    """Yield which rows cost less than the best without being significantly worse."""
    best = comparison.best
    if comparison.reference is not best or len(comparison.rows) < 2:
        return
    candidates = [best, *rows_by_outcome(comparison)["similar"]]
    savings = []
    for measure in (x for x in comparison.cost if x.key in CHEAPEST):
        costs = {row.label: x for row in candidates if (x := row.mean(measure.key)) is not None}
        if not (base := costs.get(best.label)):
            continue
        cheapest = (max if measure.better == "higher" else min)(costs, key=costs.__getitem__)
        ratio = costs[cheapest] / base
        if abs(ratio - 1) > 0.01:
            savings.append(f"`{cheapest}` {CHEAPEST[measure.key]} ({ratio:.2f} × {measure.title})")
    if savings:
        peers = f"Among the rows that do not differ significantly from `{best.label}`"
        yield f"{peers}, {', '.join(savings)}."


def describe_tests(comparison: Comparison) -> Iterator[str]:
    """Yield how the differences were tested."""
    tested = [x for x in comparison.quality if x.key in comparison.differences]
    bootstrapped = [x.title for x in tested if x.test == "bootstrap"]
    welch_tested = [x.title for x in tested if x.test == "welch"]
    yield (
        f"Each difference is the row's mean minus that of `{comparison.reference.label}`, the "
        f"{'reference' if comparison.reference_given else 'best row'}."
    )
    if bootstrapped:
        tests = [x for by_row in comparison.differences.values() for x in by_row.values()]
        signatures = "; ".join(sorted({x.signature for x in tests} - {""}))
        settings = f" ({signatures})" if signatures else ""
        yield (
            f"{' and '.join(bootstrapped)}: sacrebleu's paired bootstrap resampling of the test "
            f"sentences, {count_resamples(len(comparison.rows)):,} times, with the outputs of all "
            "seeds together. It tests whether other sentences would show the difference, not "
            f"whether other seeds would{settings}."
        )
    if welch_tested:
        titles = ", ".join(welch_tested).capitalize()
        yield f"{titles}: Welch's t-test over seeds, which needs two seeds or more."
    yield (
        f"All tests are two-sided, at the {LEVEL}, with Holm's correction over the rows of a "
        "measure. n.s. means not significant, which does not show that the rows are equal."
    )
    if not comparison.reference_given and len(comparison.rows) > 2:
        yield (
            "The best row was chosen by the values that are tested, which flatters it. "
            "baseline=LABEL names a reference beforehand."
        )
