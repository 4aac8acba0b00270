"""Tests of differences, against figures that others have published or computed."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from attention_zoo.tasks.analysis.report.comparison import Comparison, Difference, Row
from attention_zoo.tasks.analysis.report.measures import COST, QUALITY, standard_deviation
from attention_zoo.tasks.analysis.report.runs import Run
from attention_zoo.tasks.analysis.report.sentences import ResampledScores, resample_row
from attention_zoo.tasks.analysis.report.significance import (
    estimate_variance_floor,
    holm_correction,
    maximum_modulus_p,
    run_tests,
    score_test,
    t3_correction,
    welch_test,
)
from tests.report.folders import CHRF_SIGNATURE, SIGNATURE, outputs

# Student's sleep data, as R's documentation of t.test has them: t = -1.8608, df = 17.776.
SLEEP = (
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
)


def test_welch_gives_what_r_gives() -> None:
    found = welch_test(*SLEEP)
    assert found.delta == pytest.approx(0.75 - 2.33)
    assert found.p_value == pytest.approx(0.07939, abs=5e-6)


def test_welch_of_two_and_two_is_in_closed_form() -> None:
    # Equal variances of two values each: Student's t with 2 degrees, p = 1 - t / √(2 + t²).
    ours, theirs = [1.0, 3.0], [5.0, 7.0]
    t = 4 / math.sqrt(2)
    assert welch_test(ours, theirs).p_value == pytest.approx(1 - t / math.sqrt(2 + t * t))
    # Half of the variances over seeds, 2 each, more: V = 2 + 2, t = 2.
    tuned = welch_test(ours, theirs, tuning_variance=0.5)
    assert tuned.p_value == pytest.approx(1 - 2 / math.sqrt(6))


MATCH = next(x for x in QUALITY if x.key == "test/exact_match")
SPEED = next(x for x in COST if x.test == "welch")


def compare(
    *samples: Sequence[float], reference: int | None = None, tuning_variance: float = 0.0
) -> Comparison:
    """Return a tested comparison of rows with these exact matches, which are their speeds too."""

    def new_run(value: float) -> Run:
        return Run(Path(), {}, {MATCH.key: value, SPEED.key: value}, (), "trained", "", None)

    rows = [Row({}, [*map(new_run, x)], label=str(i)) for i, x in enumerate(samples)]
    best = max(rows, key=lambda row: row.mean(MATCH.key) or 0.0)
    found = Comparison(
        "",
        sorted(rows, key=lambda row: -(row.mean(MATCH.key) or 0.0)),
        [MATCH],
        [SPEED],
        best if reference is None else rows[reference],
        reference is not None,
        [],
        "",
        tuning_variance=tuning_variance,
    )
    run_tests(found, lambda: None)
    return found


def test_the_variance_of_tuning_is_that_of_quality_not_of_cost() -> None:
    ours, theirs = SLEEP
    found = compare(ours, theirs, reference=1, tuning_variance=0.5)
    (row,) = (x for x in found.rows if x is not found.reference)
    p_values = [found.difference(row, x).p_value for x in (MATCH, SPEED)]
    assert p_values == [welch_test(ours, theirs, 0.5).p_value, welch_test(ours, theirs).p_value]


# Seeds that solve a task or do not: of each of the outer rows, three agree.
SOLVED = [(0.99, 1.0, 0.98), (1.0, 0.02, 0.99), (0.01, 0.98, 0.0), (0.99, 0.0, 0.97)]
FAILED = (0.01, 0.0, 0.02)


@pytest.mark.parametrize("reference", [None, 0])
def test_seeds_that_agree_where_others_do_not_are_not_taken_for_certain(reference) -> None:
    found = compare(*SOLVED, FAILED, reference=reference)
    difference = found.difference(found.rows[-1])
    assert difference.is_due_to_floor and not difference.significant
    assert difference.test_result.startswith("n.s., p = 0.")
    assert difference.test_result.endswith(", floor")
    # Welch's test alone takes them for certain, and so does that of the speeds.
    assert welch_test(SOLVED[0], FAILED).p_value < 1e-4
    assert found.difference(found.rows[-1], SPEED).significant
    # Where all rows agree over seeds, so do these.
    certain = compare(SOLVED[0], SOLVED[0][::-1], FAILED, (0.02, 0.01, 0.0), reference=reference)
    assert all(certain.difference(row).significant for row in certain.rows[2:])


def test_the_floor_is_half_of_the_upper_quartile_of_the_variances() -> None:
    samples = [[0.0, 2.0 * x] for x in (1, 2, 3, 9)]  # variances of 2x²
    assert estimate_variance_floor(samples) == pytest.approx(0.5 * 2 * 3**2)
    assert estimate_variance_floor(samples[:2]) == pytest.approx(0.5 * 2 * 2**2)
    assert estimate_variance_floor([*samples, [7.0], []]) == pytest.approx(0.5 * 2 * 3**2)
    assert estimate_variance_floor([[7.0], []]) == estimate_variance_floor([[0.1] * 3] * 2) == 0


def test_one_unstable_row_of_four_does_not_hide_the_differences_of_others() -> None:
    stable = [(0.50, 0.51, 0.52), (0.61, 0.60, 0.62), (0.80, 0.81, 0.82)]
    found = compare(*stable, (0.0, 0.4, 0.8))
    tested = {row.label: found.difference(row) for row in found.rows}
    assert tested["0"].significant and tested["1"].significant


def test_a_floor_makes_no_difference_more_certain() -> None:
    """Its variance is added, and the freedom is that of Welch's test."""
    generator = np.random.default_rng(0)
    for ours, theirs in generator.normal(0, 1, (20, 2, 3)).tolist():
        plain, floored = welch_test(ours, theirs), welch_test(ours, theirs, 0.0, 2.0)
        assert floored.freedom == plain.freedom and floored.p_value >= plain.p_value
        variances = [max(2.0, standard_deviation(x) ** 2) / 3 for x in (ours, theirs)]
        assert floored.t == pytest.approx(abs(floored.delta) / math.sqrt(sum(variances)))
    # Rows without any spread have the freedom of one row.
    found = welch_test([0.0] * 3, [1.0] * 3, 0.0, 0.3)
    assert found.freedom == 2 and found.t == pytest.approx(1 / math.sqrt(2 * 0.3 / 3))


@pytest.mark.parametrize(
    ("ours", "theirs", "amount", "why"),
    [
        ([1.0], [2.0, 3.0], -1.5, "one seed: no test"),
        ([1.0, 1.0], [2.0, 2.0], -1.0, "no spread over seeds: no test"),
        # Three times 0.1 is not 0.3 in floating point, but there is no spread.
        ([0.1] * 3, [0.7] * 3, pytest.approx(-0.6), "no spread over seeds: no test"),
        ([], [1.0], None, "no value"),
    ],
)
def test_where_there_is_no_test_that_is_said(ours, theirs, amount, why) -> None:
    found = welch_test(ours, theirs)
    assert (found.delta, found.p_value, found.test_result) == (amount, None, why)


def test_holm_steps_down() -> None:
    given = [0.01, 0.04, 0.03, None, 0.005]
    found = holm_correction([Difference(1.0, p) for p in given])
    assert [x.adjusted_p_value for x in found] == pytest.approx([0.03, 0.06, 0.06, None, 0.02])
    assert [x.significant for x in found] == [True, False, False, False, True]
    assert found[1].test_result == "n.s., p = 0.060" and found[0].test_result == "p = 0.030"


def test_rows_that_are_equal_in_all_seeds_do_not_differ() -> None:
    found = holm_correction([welch_test([0.1] * 3, [0.1] * 3)])
    assert found[0].test_result == "n.s., p = 1.000"


@pytest.mark.parametrize(
    ("freedom", "critical"), [(1, 12.706), (3, 3.182), (10, 2.228), (120, 1.980), (1e6, 1.960)]
)
def test_the_maximum_of_one_has_students_distribution(freedom: float, critical: float) -> None:
    """Compare with the tables of the t distribution, at the two-sided 5 % level."""
    assert maximum_modulus_p(critical, freedom, 1) == pytest.approx(0.05, abs=5e-5)


@pytest.mark.parametrize(("freedom", "count"), [(1.4, 3), (6.5, 66), (300, 300)])
def test_the_maximum_modulus_is_that_of_draws(freedom: float, count: int) -> None:
    generator = np.random.default_rng(0)
    normal = np.abs(generator.standard_normal((20_000, count))).max(axis=1)
    drawn = normal / np.sqrt(generator.chisquare(freedom, 20_000) / freedom)
    for t in np.quantile(drawn, (0.3, 0.9, 0.97)):
        share = (drawn > t).mean()
        assert maximum_modulus_p(t, freedom, count) == pytest.approx(share, abs=0.01)


def test_t3_of_many_normal_values_is_sidaks_correction() -> None:
    difference = Difference(1.0, maximum_modulus_p(2.5, 1e7, 1), t=2.5, freedom=1e7)
    untested = Difference(None, untested_reason="no value")
    found, same = t3_correction([difference, untested], 6)
    assert found.adjusted_p_value == pytest.approx(1 - (1 - 0.012419) ** 6, abs=1e-4)
    assert same == untested


def resampled(*seeds: list[dict[str, str]], key: str = "test/bleu") -> ResampledScores:
    """Return the resampled scores of a row whose runs left these outputs."""
    signature = {"test/bleu": SIGNATURE, "test/chrf": CHRF_SIGNATURE}[key]
    return resample_row(key, row_of(*seeds, signature=signature))


def row_of(*seeds: list[dict[str, str]] | None, signature: str | None = SIGNATURE) -> Row:
    """Return a row whose runs have these outputs and a signature."""

    class FakeRun:
        results = {"sacrebleu_signature": signature, "chrf_signature": signature}  # noqa: RUF012

        def __init__(self, lines: list[dict[str, str]] | None) -> None:
            self.outputs = lambda: lines

    return Row({}, [FakeRun(lines) for lines in seeds])  # type: ignore[misc]


def test_sentences_are_resampled_as_sacrebleu_does() -> None:
    ours, theirs = outputs(0.6, 1, "a"), outputs(0.65, 1, "b")
    systems = [("b", [x["output"] for x in theirs]), ("a", [x["output"] for x in ours])]
    references = [[x["reference"] for x in ours]]
    for key, metric in {"test/bleu": BLEU(), "test/chrf": CHRF()}.items():
        _, scores = PairedTest(systems, {"x": metric}, references, "bs", 1000)()
        base, row = next(values for name, values in scores.items() if name != "System")
        sides = resampled(ours, key=key), resampled(theirs, key=key)
        deltas = np.subtract(*(x.scores[0] for x in sides))
        # The p value of sacrebleu counts the resamples, of one side where a difference is large.
        sizes, size = np.abs(deltas), abs(row.score - base.score)
        assert row.p_value == pytest.approx((np.sum(sizes - sizes.mean() > size) + 1) / 1001)
        # Student's, with the variance of the resamples, is close to the share of both sides.
        found = score_test([row.score], [base.score], *sides)
        share = np.mean(np.abs(deltas - deltas.mean()) > size)
        assert found.p_value == pytest.approx(share, abs=0.02)
        assert found.evidence == "test sentences"


def test_one_seed_is_said_with_the_p_value() -> None:
    sides = resampled(outputs(0.6, 1, "a")), resampled(outputs(0.9, 1, "b"))
    (found,) = holm_correction([score_test([30.0], [60.0], *sides)])
    assert found.test_result == "p < 0.001, one seed"


def test_seeds_count_where_they_differ_by_more_than_sentences_explain() -> None:
    """So that copies of a run, which say nothing new, make no difference more certain."""
    ours, theirs = outputs(0.60, 1, "a"), outputs(0.63, 1, "b")
    one = score_test([30.0], [33.0], resampled(ours), resampled(theirs))
    copies = resampled(*[ours] * 3), resampled(*[theirs] * 3)
    same = score_test([30.0] * 3, [33.0] * 3, *copies)
    assert one.p_value is not None and 0.005 < one.p_value < 0.9
    assert same.p_value == pytest.approx(one.p_value)
    spread = score_test([20.0, 30.0, 40.0], [23.0, 33.0, 43.0], *copies)
    assert spread.p_value is not None and spread.p_value > 1.5 * one.p_value
    assert spread.evidence == "seeds and test sentences"
    # This is Welch's test where sentences make no difference.
    flat = replace(copies[0], scores=np.full((3, 9), 30.0))
    alone = score_test([26.0, 30.0, 34.0], [29.0, 33.0, 37.0], flat, flat)
    assert alone.p_value == welch_test([26.0, 30.0, 34.0], [29.0, 33.0, 37.0]).p_value
    tuned = score_test([26.0, 30.0, 34.0], [29.0, 33.0, 37.0], flat, flat, 0.5)
    assert tuned.p_value == welch_test([26.0, 30.0, 34.0], [29.0, 33.0, 37.0], 0.5).p_value


def test_the_shared_variance_is_that_of_independent_sentences() -> None:
    """Scores of runs that are independent normal values with a part in common."""
    generator = np.random.default_rng(0)
    scores = generator.normal(0, 3, 5000) + generator.normal(0, 2, (4, 5000))
    assert ResampledScores(scores=scores).shared_variance() == pytest.approx(4 / 4, rel=0.05)
    assert ResampledScores(scores=scores[:1]).shared_variance() == 0


OURS = outputs(0.7, 1, "a")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (row_of(None), r"no test_outputs"),
        (row_of(OURS[1:]), "other test sentences"),
        (row_of([{**x, "reference": "other"} for x in OURS]), "other test sentences"),
        (row_of(OURS, OURS[1:]), "other test sentences"),
        (row_of(OURS, signature=CHRF_SIGNATURE), "other sacreBLEU settings"),
    ],
)
def test_what_cannot_be_compared_is_not_tested(row: Row, why: str) -> None:
    sides = resample_row("test/bleu", row), resampled(OURS)
    for found in (score_test([1.0], [2.0], *sides), score_test([1.0], [2.0], *reversed(sides))):
        assert found.p_value is None and why in found.untested_reason


@pytest.mark.parametrize(
    ("signature", "why"),
    [(None, "no sacreBLEU signature"), (SIGNATURE.replace("exp", "floor[0.10]"), "unknown to")],
)
def test_settings_that_a_signature_does_not_tell_are_not_guessed(
    signature: str | None, why: str
) -> None:
    sides = [resample_row("test/bleu", row_of(OURS, signature=signature)) for _ in range(2)]
    found = score_test([1.0], [2.0], *sides)
    assert found.p_value is None and why in found.untested_reason


def test_the_settings_of_a_signature_are_obeyed() -> None:
    shouted = [{**x, "output": x["output"].upper()} for x in OURS]
    cased = SIGNATURE.replace("mixed", "lc").replace("13a", "char")
    scores = resample_row("test/bleu", row_of(shouted, OURS, signature=cased)).scores
    assert np.array_equal(scores[0], scores[1]) and scores.min() > 0


def test_deviation_is_that_of_a_sample() -> None:
    chance = random.Random(0)
    values = [chance.gauss(0, 2) for _ in range(5)]
    middle = sum(values) / 5
    assert standard_deviation(values) == pytest.approx(
        math.sqrt(sum((x - middle) ** 2 for x in values) / 4)
    )
