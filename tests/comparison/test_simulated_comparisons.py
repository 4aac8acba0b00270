"""Comparisons whose trainings are a formula: how often they are wrong, and what they find."""

import math

import numpy as np
import pytest

from attention_zoo.tasks.analysis.report.power import smallest_difference
from attention_zoo.tasks.comparison.rates import TUNING_VARIANCE
from benchmarks.simulated_comparisons import (
    CURVES,
    FEW_ROWS,
    HARDEST,
    ROWS_AND_SEEDS,
    load_or_simulate,
    make_page,
    power,
    repeat_launches,
)
from benchmarks.simulated_training import CENTER, SHAPES, Curve, SimulatedComparison


@pytest.fixture(scope="module")
def simulated():
    return SimulatedComparison(rows=2, seeds=5)


def hardest_curve(simulated):
    return Curve(3.0, 3 * CENTER, HARDEST * simulated.spread)


def test_the_plan_announces_what_tests_with_the_variance_of_tuning_show(simulated):
    expected = smallest_difference(simulated.spread, 5, 2, tuning_variance=TUNING_VARIANCE)
    assert simulated.announced == pytest.approx(expected, abs=5e-5)


def test_a_large_difference_is_found_with_its_sign_whatever_the_best_rates(simulated):
    curves = [
        Curve(3.0 + 10 * simulated.announced, CENTER / 2, 0.1),
        Curve(3.0, 2 * CENTER, 0.05),
    ]
    generator = np.random.default_rng(0)
    for _ in range(3):
        launch = simulated.run(curves, generator)
        for reference in (None, "multi_head"):
            assert launch.differences(reference) == {("linear", "multi_head")}


def test_rates_that_diverge_are_not_confirmed(simulated):
    curves = [Curve(3.0, CENTER / 9, 0.1), Curve(3.0, CENTER, 0.1)]
    launch = simulated.run(curves, np.random.default_rng(0))
    first, _ = launch.candidates
    for rate, loss in first.rate_losses.items():
        assert math.isinf(loss) == (rate > 10 * CENTER / 9)
    assert {run.outcome for run in launch.runs} == {"trained"} and len(launch.runs) == 2 * 5


@pytest.mark.slow
def test_equal_candidates_are_seldom_called_different(simulated):
    """The rates are tuned with noise; tests over seeds alone would call one in six different."""
    generator, count = np.random.default_rng(0), 120
    alarms = np.zeros(2)
    for _ in range(count):
        launch = simulated.run([hardest_curve(simulated)] * 2, generator)
        alarms += [bool(launch.differences()), bool(launch.differences_of_seeds())]
    limit = 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / count)
    assert alarms[0] / count <= limit < alarms[1] / count


@pytest.mark.slow
def test_the_announced_difference_is_found_as_often_as_promised(simulated):
    count = 60
    found = power(simulated, np.random.default_rng(0), count)
    assert found >= 0.8 - 2.5 * math.sqrt(0.8 * 0.2 / count)


@pytest.mark.slow
def test_no_launch_reverses_another(simulated):
    found, confirmed, reversed_pairs, mistaken = repeat_launches(
        simulated, np.random.default_rng(0), 20
    )
    assert found >= confirmed > 0 and reversed_pairs == 0 and mistaken <= 2


def test_curves_rise_from_the_best_rate_with_noise_of_its_spread():
    generator = np.random.default_rng(0)
    for shape, noise, _, _ in CURVES:
        curve = Curve(3.0, CENTER, 0.5, shape, noise)
        losses = [curve.loss(CENTER * 3**power) for power in (-2, -1, 0, 1, 2)]
        assert losses[2] == 3.0 == min(losses) and losses[0] >= losses[1] > 3.0 < losses[3]
        assert curve.loss(11 * CENTER) == math.inf
        drawn = [curve.draw_noise(CENTER, 0.1, generator) for _ in range(20_000)]
        assert np.std(drawn) == pytest.approx(0.1, rel=0.1)
        far = [curve.draw_noise(CENTER * 3, 0.1, generator) for _ in range(20_000)]
        assert np.std(far) == pytest.approx(0.2 if noise == "growing" else 0.1, rel=0.1)
    assert {*SHAPES} == {"parabola", *(shape for shape, *_ in CURVES)}


def test_the_page_has_a_line_for_each_setting(tmp_path):
    lines = {
        (rows, seeds): {
            "errors": [str(rows), str(seeds), *["0"] * 6],
            "launches": [str(rows), str(seeds), *["0"] * 4],
            "tasks": [str(rows), str(seeds), *["0"] * 4],
            **({"curves": ["0"] * len(CURVES)} if (rows, seeds) in FEW_ROWS else {}),
        }
        for rows, seeds in ROWS_AND_SEEDS
    }
    page = make_page(7, lines)
    assert "--comparisons 7 " in page and page.count("| 20 | 3 |") == 3
    assert page.count("| steps | growing |") == 1
    # A part that was simulated before is not simulated again.
    (tmp_path / "7-2x3.json").write_text('{"errors": []}')
    assert load_or_simulate((2, 3), 7, tmp_path) == {"errors": []}
