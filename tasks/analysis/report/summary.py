"""The sentences of a report: which row is best, how certain that is, and what it costs.

Labels are quoted in backticks, as in Markdown.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean

from attention_zoo.tasks.analysis.report.comparison import (
    SIGNIFICANCE_LEVEL,
    Comparison,
    Row,
    quote_labels,
)
from attention_zoo.tasks.analysis.report.conditions import find_conditions
from attention_zoo.tasks.analysis.report.measures import Measure, standard_deviation
from attention_zoo.tasks.analysis.report.runs import Run
from attention_zoo.tasks.analysis.report.sentences import RESAMPLES, SEED, SIGNATURES
from attention_zoo.tasks.analysis.report.significance import FLOOR_SHARE

MAX_LABELS = 6  # of a sentence; more are counted
OUTCOMES = ("trained", "refused", "diverged", "failed", "killed", "not run", "unfinished")
COSTS = ("tokens_per_second", "peak_memory_bytes", "parameters", "decode_state_bytes", "seconds")
CHEAPEST = {
    "tokens_per_second": "trains fastest",
    "peak_memory_bytes": "takes the least memory",
    "decode_state_bytes": "has the smallest decode state",
}
PERCENT = f"{100 * SIGNIFICANCE_LEVEL:.0f} %"
LEVEL = f"{PERCENT} level"
VERDICTS = ("better", "worse", "similar", "untested")  # in the order of a summary
EVIDENCE = {
    "seeds": "over seeds",
    "seeds and test sentences": "over seeds and test sentences",
    "test sentences": "over test sentences alone (one seed: other seeds were not tested)",
}


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
        x.describe(best.mean(x.key))
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


def summarize_tests(comparison: Comparison) -> Iterator[str]:
    """Yield how the rows differ from the reference, and by which evidence."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in comparison.rows:
        if (difference := comparison.difference(row)) is None:  # the reference
            continue
        improved = comparison.primary_metric.improves(difference.delta or 0.0)
        outcome = ("better" if improved else "worse") if difference.significant else "similar"
        if difference.adjusted_p_value is None:
            outcome = "untested"
        groups[outcome, difference.evidence or difference.untested_reason].append(row)
    reference = f"`{comparison.reference.label}`"
    for (outcome, evidence), rows in sorted(groups.items(), key=lambda x: VERDICTS.index(x[0][0])):
        if outcome == "untested":
            all_others = len(rows) == len(comparison.rows) - 1
            labels = "the other rows" if all_others else quote_labels(rows, MAX_LABELS)
            chance = "The differences may be due to chance."
            yield f"Not tested against {reference} ({evidence}): {labels}. {chance}"
        elif outcome == "similar":
            labels = quote_labels(rows, MAX_LABELS, lambda row: p_text(comparison, row))
            yield f"Not significantly different from {reference} {EVIDENCE[evidence]}: {labels}."
        else:
            labels = quote_labels(rows, MAX_LABELS)
            yield (
                f"Significantly {outcome} than {reference} {EVIDENCE[evidence]}, at the {LEVEL}: "
                f"{labels}."
            )


def p_text(comparison: Comparison, row: Row) -> str:
    """Return the p value of a row's difference in the primary metric."""
    difference = comparison.difference(row)
    return difference.p_text if difference else ""


def summarize_savings(comparison: Comparison) -> Iterator[str]:
    """Yield which rows cost less than the best without being significantly worse.

    A cost that varies between seeds must be significantly lower; with one seed, that is said.
    """
    best = comparison.best
    if comparison.reference is not best or len(comparison.rows) < 2:
        return
    tests = {row: comparison.difference(row) for row in comparison.rows}
    peers = [row for row, test in tests.items() if test is not None and test.similar]
    savings = []
    for measure in (x for x in comparison.cost if x.key in CHEAPEST):
        costs = {row: x for row in [best, *peers] if (x := row.mean(measure.key)) is not None}
        if not costs.get(best):
            continue
        cheapest = (max if measure.better == "higher" else min)(costs, key=costs.__getitem__)
        difference = comparison.difference(cheapest, measure)
        if difference is not None and difference.similar:
            continue
        if abs(costs[cheapest] / costs[best] - 1) > 0.01:
            ratio = describe_ratio(cheapest, best, measure)
            savings.append(f"`{cheapest.label}` {CHEAPEST[measure.key]} ({ratio})")
    if savings:
        peers_text = f"Among the rows that do not differ significantly from `{best.label}`"
        yield f"{peers_text}, {', '.join(savings)}."


def describe_ratio(row: Row, base: Row, measure: Measure) -> str:
    """Return "1.25 ± 0.02 × tokens/s": the ratio of two means, and its deviation over seeds."""
    values, base_values = row.values(measure.key), base.values(measure.key)
    ratio = fmean(values) / fmean(base_values)
    if measure.test is None:
        return f"{ratio:.2f} × {measure.title}"
    if min(len(values), len(base_values)) < 2:
        return f"{ratio:.2f} × {measure.title}, one seed"
    deviations = [standard_deviation(x) / fmean(x) for x in (values, base_values)]
    return f"{ratio:.2f} ± {ratio * math.hypot(*deviations):.2f} × {measure.title}"


def describe_tests(comparison: Comparison) -> Iterator[str]:
    """Yield how the differences were tested."""
    bootstrapped = [x for x in comparison.tested_measures if x.test == "bootstrap"]
    welch_tested = [x.title for x in comparison.tested_measures if x.test == "welch"]
    yield (
        f"Each difference is the row's mean minus that of `{comparison.reference.label}`, the "
        f"{'reference' if comparison.reference_given else 'best row'}."
    )
    if bootstrapped:
        titles = " and ".join(x.title for x in bootstrapped)
        runs = [run for row in comparison.rows for run in row.runs]
        found = {run.results.get(SIGNATURES[x.key]) for run in runs for x in bootstrapped}
        signatures = sorted(f"{x}|bs:{RESAMPLES}|seed:{SEED}" for x in found if x is not None)
        yield (
            f"{titles}: Welch's t-test over seeds, with the variance that {RESAMPLES:,} bootstrap "
            "resamples of the test sentences add. It tests whether other seeds and other sentences "
            "would show the difference. With one seed it tests sentences alone: another seed may "
            f"show another result ({'; '.join(signatures) or 'no signature'})."
        )
    if welch_tested:
        titles = ", ".join(welch_tested)
        yield (
            f"{titles[0].upper()}{titles[1:]}: Welch's t-test over seeds, which needs two seeds or "
            "more."
        )
    if share := comparison.tuning_variance:
        yield (
            "Each learning rate was chosen by trials of one seed, in part by luck. Tests of quality"
            f" therefore add {share:g} of the variance over seeds to the variance of each mean."
        )
    yield from describe_floor(comparison)
    yield (
        f"All tests are two-sided, at the {LEVEL}. n.s. means not significant, which does not show "
        "that the rows are equal."
    )
    yield from describe_correction(comparison)


def describe_floor(comparison: Comparison) -> Iterator[str]:
    """Yield which variance over seeds the rows count with at least."""
    measures = [
        x
        for x in comparison.quality
        if comparison.variance_floors.get(x.key)
        and any(test.tested for test in comparison.differences[x.key].values())
    ]
    if measures:
        deviations = ", ".join(
            f"{x.format(math.sqrt(comparison.variance_floors[x.key]))} ({x.title})"
            for x in measures
        )
        yield (
            "Few seeds can agree by chance. In tests of quality over seeds alone, a row's variance "
            f"therefore counts as at least {FLOOR_SHARE:g} of the upper quartile of the rows' "
            f"variances: the standard deviation as at least {deviations}. The word floor marks "
            "differences that would be significant without this."
        )


def describe_correction(comparison: Comparison) -> Iterator[str]:
    """Yield how p values are corrected for the number of tests, if there are several."""
    rows = len(comparison.rows)
    tests = [x for by_row in comparison.differences.values() for x in by_row.values()]
    if rows < 3 or not any(x.tested for x in tests):
        return
    if comparison.reference_given:
        yield (
            f"The p values are corrected for {rows - 1} comparisons with the reference (Holm's "
            "method): if no row differed from it, the chance to call any of them different would "
            f"be about {PERCENT} at most. This holds if the reference was chosen before the "
            "results were seen."
        )
    else:
        yield (
            "The best row was chosen by the values that are tested, so luck favours it. Therefore "
            f"the p values are corrected for all {math.comb(rows, 2)} pairs of rows (Dunnett's "
            "T3): if no rows differed, the chance to call any of them worse would be "
            f"about {PERCENT} at most. Luck does not favour a reference that was chosen "
            "beforehand, by `report baseline=LABEL` or `compare reference=NAME`."
        )
