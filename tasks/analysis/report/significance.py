"""Tests of whether rows differ by more than chance."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean

import numpy as np

from attention_zoo.tasks.analysis.report.comparison import Comparison, Difference, Evidence, Row
from attention_zoo.tasks.analysis.report.measures import Measure, standard_deviation
from attention_zoo.tasks.analysis.report.sentences import ResampledScores, resample_row


def run_tests(comparison: Comparison, advance: Callable[[], None]) -> None:
    """Add to a comparison the differences from the reference, in each measure that has a test.

    Holm's correction is over the differences from a reference that the user named. The best row is
    chosen by the values that are tested; there the correction is over all pairs of rows, so that it
    holds whichever row they choose. Each test calls `advance`.
    """
    pairs = tested_pairs(comparison)
    for measure in comparison.tested_measures:
        corrected = holm_correction(compare_pairs(measure, comparison.rows, pairs, advance))
        comparison.differences[measure.key] = {
            row: difference
            for (row, other), difference in zip(pairs, corrected, strict=True)
            if other is comparison.reference
        }


def count_tests(comparison: Comparison) -> int:
    """Return how many tests `run_tests` runs."""
    return len(comparison.tested_measures) * len(tested_pairs(comparison))


def tested_pairs(comparison: Comparison) -> list[tuple[Row, Row]]:
    """Return the pairs of a row and the one that it is compared with."""
    rows, reference = comparison.rows, comparison.reference
    if comparison.reference_given:
        return [(row, reference) for row in rows if row is not reference]
    return [(row, better) for better, row in combinations(rows, 2)]


def compare_pairs(
    measure: Measure,
    rows: Sequence[Row],
    pairs: Sequence[tuple[Row, Row]],
    advance: Callable[[], None],
) -> list[Difference]:
    """Return the differences of pairs of rows in a measure, each with its test."""
    values = {row: row.values(measure.key) for row in rows}
    resampled = {}
    if measure.test == "bootstrap":
        resampled = {row: resample_row(measure.key, row) for row in rows}
    differences = []
    for row, other in pairs:
        ours, theirs = values[row], values[other]
        if resampled:
            differences.append(score_test(ours, theirs, resampled[row], resampled[other]))
        else:
            differences.append(welch_test(ours, theirs))
        advance()
    return differences


def welch_test(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Test the means over seeds of two rows of unequal variances, two-sided (Welch 1947).

    t = (m₁ − m₂)/√(v₁ + v₂),  vᵢ = sᵢ²/nᵢ,  freedom = (v₁ + v₂)²/Σ vᵢ²/(nᵢ − 1)
    """
    if not ours or not theirs:
        return Difference(None, untested_reason="no value")
    delta = fmean(ours) - fmean(theirs)
    if min(len(ours), len(theirs)) < 2:
        return Difference(delta, untested_reason="one seed: no test")
    variances = [standard_deviation(x) ** 2 / len(x) for x in (ours, theirs)]
    freedoms = [len(x) - 1 for x in (ours, theirs)]
    return t_test(delta, sum(variances), variances, freedoms, "seeds")


def score_test(
    ours: Sequence[float],
    theirs: Sequence[float],
    ours_resampled: ResampledScores,
    theirs_resampled: ResampledScores,
) -> Difference:
    """Test the means over seeds of two rows' scores, which depend on the test sentences too.

    The variance has two parts, as for data clustered in two ways (Cameron, Gelbach and Miller
    2011): that of the difference on resampled sentences, which is u, and that over seeds, as far as
    it exceeds what the choice of sentences explains, which is cᵢ and part of u.

        t = (m₁ − m₂)/√V,  V = u + Σ max(0, vᵢ − cᵢ),  freedom = V²/(u²/(S − 1) + Σ vᵢ²/(nᵢ − 1))

    for S sentences, with vᵢ as in Welch's test. If a row has one seed, V = u: seeds are not tested.
    """
    if not ours or not theirs:
        return Difference(None, untested_reason="no value")
    delta = fmean(ours) - fmean(theirs)
    resampled = (ours_resampled, theirs_resampled)
    if reason := refuse_pair(*resampled):
        return Difference(delta, untested_reason=reason)
    ours_means, theirs_means = (x.scores.mean(axis=0) for x in resampled)
    deltas = ours_means - theirs_means
    # Less the first, equal differences have no variance, not one of rounding errors.
    variance = float(np.var(deltas - deltas[0], ddof=1))
    variances, freedoms = [variance], [len(ours_resampled.test_set) - 1]
    evidence: Evidence = "test sentences"
    if min(len(ours), len(theirs)) > 1:
        evidence = "seeds and test sentences"
        for values, scores in zip((ours, theirs), resampled, strict=True):
            over_seeds = standard_deviation(values) ** 2 / len(values)
            variance += max(0.0, over_seeds - scores.shared_variance())
            variances.append(over_seeds)
            freedoms.append(len(values) - 1)
    return t_test(delta, variance, variances, freedoms, evidence)


def refuse_pair(ours: ResampledScores, theirs: ResampledScores) -> str:
    """Return why the scores of two rows cannot be compared, or nothing."""
    if ours.signature != theirs.signature:
        return "other sacreBLEU settings: no test"
    if reason := ours.untested_reason or theirs.untested_reason:
        return reason
    return "" if ours.test_set == theirs.test_set else "other test sentences: no test"


def t_test(
    delta: float,
    variance: float,
    estimates: Sequence[float],
    freedoms: Sequence[int],
    evidence: Evidence,
) -> Difference:
    """Test a difference by its variance, which is made of estimates with degrees of freedom.

        p = I_{f/(f + t²)}(f/2, ½),  f = variance²/Σ estimateᵢ²/freedomᵢ

    with I the regularised incomplete beta function, and f as of Satterthwaite 1946.
    """
    uncertain = [(x, freedom) for x, freedom in zip(estimates, freedoms, strict=True) if x > 0]
    if not uncertain or any(freedom < 1 for _, freedom in uncertain):
        if delta:
            return Difference(delta, untested_reason=f"no spread over {evidence}: no test")
        return Difference(delta, 1.0, evidence=evidence)

    from mpmath import fp

    t_squared = delta**2 / variance
    freedom = variance**2 / sum(x**2 / freedom for x, freedom in uncertain)
    p_value = fp.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t_squared), regularized=True)
    return Difference(delta, float(p_value), evidence=evidence)


def holm_correction(differences: Sequence[Difference]) -> list[Difference]:
    """Adjust the p values by Holm's step-down correction (1979).

    The chance that any difference is wrongly called significant stays below the level:

        adjusted p of rank i of m = max over j ≤ i of min(1, (m − j + 1) p_j)
    """
    ranked = sorted((x.p_value, i) for i, x in enumerate(differences) if x.p_value is not None)
    adjusted = list(differences)
    highest = 0.0
    for rank, (p_value, index) in enumerate(ranked):
        highest = max(highest, min(1.0, (len(ranked) - rank) * p_value))
        adjusted[index] = replace(differences[index], adjusted_p_value=highest)
    return adjusted
