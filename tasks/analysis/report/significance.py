"""Tests of whether rows differ by more than chance."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from attention_zoo.tasks.analysis.report.comparison import Comparison, Difference, Evidence, Row
from attention_zoo.tasks.analysis.report.measures import Measure, standard_deviation
from attention_zoo.tasks.analysis.report.sentences import ResampledScores, resample_row

POINTS = 600  # of numerical integration
# The variance over seeds of a row counts as at least this share of the upper quartile of the rows'.
# Chosen by simulation: where trainings succeed or fail by chance, it keeps errors at 5 % with three
# seeds and more. A lower share does not; a higher one hides more differences. A mean in place of
# the quartile would let one unstable row hide the differences between all others.
FLOOR_SHARE = 0.5


def run_tests(comparison: Comparison, advance: Callable[[], None]) -> None:
    """Add to a comparison the differences from the reference, in each measure that has a test.

    Holm's correction is for a reference that the user named. The best row is chosen by the values
    that are tested; T3's correction holds whichever row they choose. Each test calls `advance`.
    What tuning adds to the variance is added for measures of quality. Those that are tested over
    seeds alone have a floor of the variance.
    """
    rows, reference = comparison.rows, comparison.reference
    others = [row for row in rows if row is not reference]
    for measure in comparison.tested_measures if others else ():
        is_quality = measure in comparison.quality
        tuning = comparison.tuning_variance if is_quality else 0.0
        tested = compare_with_reference(measure, others, reference, advance, tuning)
        differences = correct_p_values(comparison, tested)
        if is_quality and measure.test == "welch":
            floor = estimate_variance_floor([row.values(measure.key) for row in rows])
            comparison.variance_floors[measure.key] = floor
            tested = compare_with_reference(
                measure, others, reference, lambda: None, tuning, variance_floor=floor
            )
            differences = [
                replace(floored, is_due_to_floor=floored.similar and x.significant)
                for floored, x in zip(
                    correct_p_values(comparison, tested), differences, strict=True
                )
            ]
        comparison.differences[measure.key] = dict(zip(others, differences, strict=True))


def count_tests(comparison: Comparison) -> int:
    """Return how many tests `run_tests` runs."""
    return len(comparison.tested_measures) * (len(comparison.rows) - 1)


def correct_p_values(comparison: Comparison, differences: Sequence[Difference]) -> list[Difference]:
    """Adjust the p values of differences from the reference for the number of tests."""
    if comparison.reference_given:
        return holm_correction(differences)
    return t3_correction(differences, math.comb(len(comparison.rows), 2))


def compare_with_reference(
    measure: Measure,
    rows: Sequence[Row],
    reference: Row,
    advance: Callable[[], None],
    tuning_variance: float,
    variance_floor: float = 0.0,
) -> list[Difference]:
    """Return the differences of rows from the reference in a measure, each with its test.

    The floor is for tests over seeds alone.
    """
    theirs, differences = reference.values(measure.key), []
    is_score = measure.test == "bootstrap"
    theirs_resampled = resample_row(measure.key, reference) if is_score else None
    for row in rows:
        ours = row.values(measure.key)
        if theirs_resampled is None:
            differences.append(welch_test(ours, theirs, tuning_variance, variance_floor))
        else:
            ours_resampled = resample_row(measure.key, row)
            resampled = (ours_resampled, theirs_resampled)
            differences.append(score_test(ours, theirs, *resampled, tuning_variance))
        advance()
    return differences


def estimate_variance_floor(samples: Sequence[Sequence[float]]) -> float:
    """Return the least variance over seeds that a row counts with, from the seeds of all rows.

    Few seeds can agree by luck, where those of other rows do not. The floor is half of the upper
    quartile of the rows' variances, so that up to a quarter of the rows may be unstable without an
    effect on the others.
    """
    variances = [standard_deviation(x) ** 2 for x in samples if len(x) > 1]
    if not variances:
        return 0.0
    return FLOOR_SHARE * float(np.quantile(variances, 0.75, method="inverted_cdf"))


def welch_test(
    ours: Sequence[float],
    theirs: Sequence[float],
    tuning_variance: float = 0.0,
    variance_floor: float = 0.0,
) -> Difference:
    """Test the means over seeds of two rows, two-sided (Welch 1947).

    The rows may differ in variance and in their numbers of seeds:

        t = (m₁ − m₂)/√Σ max(sᵢ², floor)wᵢ,  wᵢ = 1/nᵢ + u,  freedom = (Σ sᵢ²wᵢ)²/Σ(sᵢ²wᵢ)²/(nᵢ − 1)

    u is the variance that tuning adds to a mean, in variances over seeds. Welch's test has u = 0
    and no floor. A floor adds no degrees of freedom, so that it makes no difference more certain.
    """
    if not ours or not theirs:
        return Difference(None, untested_reason="no value")
    delta = fmean(ours) - fmean(theirs)
    if min(len(ours), len(theirs)) < 2:
        return Difference(delta, untested_reason="one seed: no test")
    # The variance of a mean that its row shows, and what the floor adds to it.
    variances = [variance_of_mean(x, tuning_variance) for x in (ours, theirs)]
    floors = [variance_floor * (1 / len(x) + tuning_variance) for x in (ours, theirs)]
    added = sum(max(0.0, floor - x) for floor, x in zip(floors, variances, strict=True))
    freedoms = [len(x) - 1 for x in (ours, theirs)]
    return t_test(delta, sum(variances), variances, freedoms, "seeds", added)


def variance_of_mean(
    values: Sequence[float], tuning_variance: float, variance_floor: float = 0.0
) -> float:
    """Return the variance of a mean over seeds, with what tuning adds, in variances over seeds."""
    variance = max(standard_deviation(values) ** 2, variance_floor)
    return variance * (1 / len(values) + tuning_variance)


def score_test(
    ours: Sequence[float],
    theirs: Sequence[float],
    ours_resampled: ResampledScores,
    theirs_resampled: ResampledScores,
    tuning_variance: float = 0.0,
) -> Difference:
    """Test the means over seeds of two rows' scores, which depend on the test sentences too.

    The variance has two parts, as for data clustered in two ways (Cameron, Gelbach and Miller
    2011): that of the difference on resampled sentences, which is u, and that over seeds, as far as
    it exceeds what the choice of sentences explains, which is cᵢ and part of u.

        t = (m₁ − m₂)/√V,  V = u + Σ max(0, vᵢ − cᵢ),  freedom = V²/(u²/(S − 1) + Σ vᵢ²/(nᵢ − 1))

    for S sentences, with vᵢ as in `welch_test`. If a row has one seed, V = u: seeds are not tested.
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
            over_seeds = variance_of_mean(values, tuning_variance)
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
    added: float = 0.0,
) -> Difference:
    """Test a difference by its variance, which is made of estimates with degrees of freedom.

    t has variance²/Σ estimateᵢ²/freedomᵢ degrees of freedom (Satterthwaite 1946), or the fewest of
    these where all estimates are 0. What is `added` to the variance does not count in them.
    """
    uncertain = [(x, freedom) for x, freedom in zip(estimates, freedoms, strict=True) if x > 0]
    if not (uncertain or added) or any(freedom < 1 for _, freedom in uncertain):
        if delta:
            return Difference(delta, untested_reason=f"no spread over {evidence}: no test")
        return Difference(delta, 1.0, evidence=evidence)

    t = abs(delta) / math.sqrt(variance + added)
    freedom: float = min(freedoms)
    if uncertain:
        freedom = variance**2 / sum(x**2 / freedom for x, freedom in uncertain)
    p_value = maximum_modulus_p(t, freedom, count=1)
    return Difference(delta, p_value, evidence=evidence, t=t, freedom=freedom)


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


def t3_correction(differences: Sequence[Difference], pairs: int) -> list[Difference]:
    """Adjust the p values by Dunnett's T3 (1980) for all pairs of rows of unequal variances.

    The chance that any of the pairs is wrongly called significant stays near the level. So the
    correction holds for the differences from any row, also from one that the data chose.
    """
    return [
        replace(x, adjusted_p_value=maximum_modulus_p(x.t, x.freedom, pairs)) if x.tested else x
        for x in differences
    ]


def maximum_modulus_p(t: float, freedom: float, count: int) -> float:
    """Return P(max |Zᵢ|/S > t), for independent normal Zᵢ and S² = χ²/freedom (Stoline, Ury 1979).

        1 − ∫ (2Φ(ts) − 1)^count dP(s);  for a count of 1, the two-sided p value of Student's t

    The integral is over w = log s², where the density is proportional to exp(−a(eʷ − w)),
    a = freedom/2. Beyond the ends it is below e⁻⁴⁰ of its maximum.
    """
    a = freedom / 2
    width = math.sqrt(80 / a)
    w = np.linspace(-width - 40 / a, width, POINTS)
    density = np.exp(-a * (np.expm1(w) - w))
    tails = np.array([math.erfc(x) for x in t * np.exp(w / 2) / math.sqrt(2)])  # 2(1 − Φ(ts))
    return float(1 - (density * (1 - tails) ** count).sum() / density.sum())
