"""Tests of differences, against figures that others have published or computed."""

import math
import random

import pytest
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from attention_zoo.tasks.analysis.report.comparison import Difference
from attention_zoo.tasks.analysis.report.measures import standard_deviation
from attention_zoo.tasks.analysis.report.significance import (
    holm_correction,
    paired_bootstrap,
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


@pytest.mark.parametrize(
    ("ours", "theirs", "amount", "why"),
    [
        ([1.0], [2.0, 3.0], -1.5, "one seed: no test"),
        ([1.0, 1.0], [2.0, 2.0], -1.0, "no spread over seeds: no test"),
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


def test_one_seed_gives_what_sacrebleu_gives() -> None:
    ours, theirs = outputs(0.6, 1, "a"), outputs(0.8, 1, "b")
    systems = [("b", [x["output"] for x in theirs]), ("a", [x["output"] for x in ours])]
    references = [[x["reference"] for x in ours]]
    metrics = {"test/bleu": (BLEU(), SIGNATURE), "test/chrf": (CHRF(), CHRF_SIGNATURE)}
    for key, (metric, signature) in metrics.items():
        found = paired_bootstrap(key, signature, {1: ours}, {1: theirs})
        signatures, scores = PairedTest(systems, {"x": metric}, references, "bs", 1000)()
        (name,) = signatures
        base, row = scores[name]
        assert found.p_value == row.p_value
        assert found.delta == pytest.approx(row.score - base.score)
        assert "bs:1000|seed:12345" in found.signature


def test_a_sentence_is_drawn_with_all_its_seeds() -> None:
    """So that copies of a run, which say nothing new, make no difference more certain."""
    ours, theirs = outputs(0.60, 1, "a"), outputs(0.66, 1, "b")
    one = paired_bootstrap("test/bleu", SIGNATURE, {1: ours}, {1: theirs})
    many = paired_bootstrap(
        "test/bleu", SIGNATURE, dict.fromkeys(range(9), ours), dict.fromkeys(range(9), theirs)
    )
    assert one.p_value is not None and 0.02 < one.p_value < 0.9
    assert many.p_value == pytest.approx(one.p_value, abs=0.01)
    assert many.delta == pytest.approx(one.delta)


def test_seeds_are_paired() -> None:
    """Only those that both have are scored, whatever the order."""
    a, b = ({seed: outputs(0.7, seed, name) for seed in (1, 2, 3)} for name in "ab")
    every = paired_bootstrap("test/bleu", SIGNATURE, a, b)
    assert paired_bootstrap("test/bleu", SIGNATURE, dict(reversed(a.items())), b) == every
    two = {seed: b[seed] for seed in (3, 1)}
    fewer = paired_bootstrap("test/bleu", SIGNATURE, a, two)
    assert fewer == paired_bootstrap(
        "test/bleu", SIGNATURE, {seed: a[seed] for seed in (1, 3)}, two
    )
    assert fewer.p_value != every.p_value


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda outputs: {2: outputs[1]}, "no seed in common"),
        (lambda outputs: {}, r"no test_outputs"),
        (lambda outputs: {1: outputs[1][1:]}, "other test sentences"),
        (lambda outputs: {1: [{**x, "reference": "other"} for x in outputs[1]]}, "sentences"),
    ],
)
def test_what_cannot_be_paired_is_not_tested(change, why) -> None:
    ours = {1: outputs(0.7, 1, "a")}
    found = paired_bootstrap("test/bleu", SIGNATURE, change(ours), ours)
    assert found.p_value is None and why in found.untested_reason


def test_settings_that_a_signature_does_not_tell_are_not_guessed() -> None:
    ours = {1: outputs(0.7, 1, "a")}
    found = paired_bootstrap("test/bleu", SIGNATURE.replace("exp", "floor[0.10]"), ours, ours)
    assert found.p_value is None and "settings unknown" in found.untested_reason
    cased = SIGNATURE.replace("mixed", "lc").replace("13a", "char")
    assert "case:lc" in paired_bootstrap("test/bleu", cased, ours, ours).signature


def test_deviation_is_that_of_a_sample() -> None:
    chance = random.Random(0)
    values = [chance.gauss(0, 2) for _ in range(5)]
    middle = sum(values) / 5
    assert standard_deviation(values) == pytest.approx(
        math.sqrt(sum((x - middle) ** 2 for x in values) / 4)
    )
