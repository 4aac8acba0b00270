"""Tests of the rows of a comparison against its reference."""

from collections.abc import Callable, Mapping

from attention_zoo.tasks.analysis.report.comparison import Comparison, Row
from attention_zoo.tasks.analysis.report.significance import (
    Difference,
    Outputs,
    holm_correction,
    paired_bootstrap,
    welch_test,
)

SIGNATURES = {"test/bleu": "sacrebleu_signature", "test/chrf": "chrf_signature"}


def run_tests(comparison: Comparison, advance: Callable[[], None]) -> None:
    """Test all rows against the reference, in each measure that has a test.

    Args:
        comparison: gets the differences.
        advance: called after each test.
    """
    outputs: dict[Row, Outputs] = {
        row: {run.seed: lines for run in row.runs if (lines := run.outputs()) is not None}
        for row in comparison.rows
    }
    reference = comparison.reference
    others = [row for row in comparison.rows if row is not reference]
    for measure in (x for x in comparison.quality if x.test is not None):
        differences = []
        for row in others:
            if measure.test == "bootstrap":
                difference = bootstrap_rows(measure.key, row, reference, outputs)
            else:
                difference = welch_test(row.values(measure.key), reference.values(measure.key))
            differences.append(difference)
            advance()
        corrected = holm_correction(differences)
        comparison.differences[measure.key] = dict(zip(others, corrected, strict=True))


def count_tests(comparison: Comparison) -> int:
    """Return how many tests `run_tests` runs."""
    return sum(x.test is not None for x in comparison.quality) * (len(comparison.rows) - 1)


def bootstrap_rows(
    key: str, row: Row, reference: Row, outputs: Mapping[Row, Outputs]
) -> Difference:
    """Test two rows by bootstrap over sentences; the difference is that of the means over seeds."""
    ours, theirs = row.mean(key), reference.mean(key)
    if ours is None or theirs is None:
        return Difference(None, untested_reason="no value")
    delta = ours - theirs
    signatures = {
        run.results.get(SIGNATURES[key]) for each in (row, reference) for run in each.runs
    }
    if len(signatures) > 1:
        return Difference(delta, untested_reason="other sacreBLEU settings: no test")
    signature = signatures.pop()
    if signature is None:
        return Difference(delta, untested_reason="no sacreBLEU signature: no test")
    resamples = count_resamples(len(outputs))
    test = paired_bootstrap(key, signature, outputs[row], outputs[reference], resamples=resamples)
    # The test's own difference is that of all seeds scored together.
    return Difference(delta, test.p_value, None, test.untested_reason, test.signature)


def count_resamples(rows: int) -> int:
    """Return how many resamples can make a p value significant after correction over the rows."""
    return max(1000, 100 * rows)


def group_by_outcome(comparison: Comparison) -> dict[str, list[Row]]:
    """Group the rows other than the reference by the outcome of their test of the primary metric.

    The outcomes are better, worse, not significant, and untested.
    """
    sign = 1 if comparison.primary_metric.better == "higher" else -1
    groups: dict[str, list[Row]] = {
        outcome: [] for outcome in ("better", "worse", "not significant", "untested")
    }
    for row in comparison.rows:
        difference = comparison.difference(row)
        if difference is None:  # the reference
            continue
        if difference.adjusted_p_value is None:
            groups["untested"].append(row)
        elif not difference.significant:
            groups["not significant"].append(row)
        else:
            groups["better" if sign * (difference.delta or 0) > 0 else "worse"].append(row)
    return groups
