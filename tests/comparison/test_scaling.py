"""Power laws over widths, and whether the order of candidates changes."""

import math

import pytest

from attention_zoo.tasks.analysis.report.power import t_quantile
from attention_zoo.tasks.comparison.scaling import (
    Size,
    describe_scaling,
    draw_scaling,
    find_order_changes,
    fit_power_law,
)

SEEDS = (-0.01, 0.0, 0.01)


def curve(exponent, factor=100.0, spread=SEEDS):
    """The losses of a power law at three widths, each seed apart by its own factor."""
    return [
        Size(flops, [factor * flops**exponent * math.exp(x) for x in spread])
        for flops in (1e12, 4e12, 16e12)
    ]


def test_a_power_law_is_found_again():
    law = fit_power_law(curve(-0.1))
    assert law.exponent == pytest.approx(-0.1) and law.at(4e12) == pytest.approx(100 * 4e12**-0.1)


def test_the_interval_is_that_of_a_regression():
    # By hand: residuals of ±0.01 at three points, n = 9, Σ(x − x̄)² = 3·2·ln(4)².
    deviation = math.sqrt(6 * 0.01**2 / 7 / (6 * math.log(4) ** 2))
    assert fit_power_law(curve(-0.1)).error == pytest.approx(2.3646 * deviation, rel=1e-3)


# From a table of the distribution.
@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.706), (2, 4.303), (7, 2.365), (60, 2.0)])
def test_quantiles_of_student(freedom, expected):
    assert t_quantile(freedom) == pytest.approx(expected, rel=1e-3)


def test_a_change_of_order_is_told_with_the_sizes_it_is_between():
    curves = {"flat": curve(-0.1, 10.0), "steep": curve(-0.3, 10.0 * 4e12**0.2)}
    (sentence,) = find_order_changes(curves)
    assert sentence.startswith("`flat` is better at 1 TFLOPs and `steep` at 16 TFLOPs")


def test_what_is_noise_is_no_change_of_order():
    noisy = (-0.5, 0.0, 0.5)
    curves = {"flat": curve(-0.1, 10.0, noisy), "steep": curve(-0.3, 10.0 * 4e12**0.2, noisy)}
    assert list(describe_scaling(curves)) == ["No change of order is shown between the widths."]


def test_seeds_that_agree_where_those_of_others_do_not_change_no_order():
    agreeing = {"flat": curve(-0.1, 10.0), "steep": curve(-0.3, 10.0 * 4e12**0.2)}
    stable = curve(-0.1, 0.3)
    (sentence,) = find_order_changes({**agreeing, "stable": stable})
    assert sentence.startswith("`flat` is better at 1 TFLOPs and `steep` at 16 TFLOPs")
    noisy = curve(-0.1, 0.3, (-2.0, 0.0, 2.0))
    assert list(find_order_changes({**agreeing, "noisy": noisy})) == []


def test_a_better_candidate_at_all_widths_is_no_change_of_order():
    assert list(find_order_changes({"worse": curve(-0.1), "better": curve(-0.1, 50.0)})) == []


def test_every_candidate_is_drawn():
    svg = draw_scaling({"one": curve(-0.1), "two": curve(-0.2)})
    assert "one" in svg and "two" in svg
    assert ">1 T<" in svg and "mathdefault" not in svg
