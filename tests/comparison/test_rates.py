"""Which learning rates are tried, and what is read off their losses."""

import math
from itertools import pairwise

import pytest

from attention_zoo.tasks.comparison.rates import (
    FURTHER,
    first_rates,
    further_rates,
    good_range,
    is_at_edge,
    smallest_ratio,
)
from attention_zoo.tasks.comparison.settings import Setting, best_setting, best_settings


def test_the_first_rates_are_around_the_center():
    assert first_rates(0.01, 5, 10) == [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    assert first_rates(0.004, 4, 3) == [0.00133, 0.004, 0.012, 0.036]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({1: 0.1, 10: 0.2, 100: 0.3}, [0.01, 0.1]),
        ({1: 0.3, 10: 0.2, 100: 0.1}, [1000, 10000]),
        ({1: 0.3, 10: 0.2, 100: 0.3}, [3.16, 31.6]),
        ({1: 0.3, 10: 0.2, 100: math.inf}, [3.16, 31.6]),
    ],
)
def test_further_rates_lie_beyond_an_edge_or_around_the_best(losses, expected):
    assert further_rates(losses, 10) == expected


def test_a_rate_between_others_is_at_no_edge():
    losses = {1: 0.3, 10: 0.1, 100: math.inf}
    assert not is_at_edge(losses, 10)
    assert is_at_edge(losses, 1) and is_at_edge(losses, 100)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({1: 0.1, 10: 0.2, 100: 0.3}, [0.1]),
        ({1: 0.3, 10: 0.2, 100: 0.1}, [1000]),
        ({1: 0.3, 10: 0.2, 100: 0.25}, [31.6]),
        ({1: 0.25, 10: 0.2, 100: math.inf}, [3.16]),
    ],
)
def test_a_single_further_rate_is_the_nearest_or_on_the_better_side(losses, expected):
    assert further_rates(losses, 10, count=1) == expected
    assert further_rates(losses, 10, count=0) == []


def test_no_gap_between_rates_is_smaller_than_announced():
    losses, factor, rounds = {rate: abs(math.log(rate)) for rate in (1 / 3, 1, 3)}, 3, 4
    for _ in range(rounds):
        losses |= {rate: abs(math.log(rate)) for rate in further_rates(losses, factor)}
    ratios = [high / low for low, high in pairwise(sorted(losses))]
    assert len(losses) == 3 + rounds * FURTHER
    assert min(ratios) == pytest.approx(smallest_ratio(factor, rounds * FURTHER), rel=0.01)


def test_settings_that_diverge_do_not_go_on():
    losses = {Setting(1): 0.3, Setting(10): 0.1, Setting(100): math.inf, Setting(10, "a=2"): 0.2}
    assert best_settings(losses, 2) == [(10, ""), (10, "a=2")]
    assert best_settings(losses, 4) == [(1, ""), (10, ""), (10, "a=2")]
    assert best_setting(losses) == (10, "") and best_setting({Setting(1): math.inf}) is None


def test_of_equal_settings_the_default_options_at_the_lowest_rate_are_best():
    losses = {Setting(2): 0.1, Setting(1, "a=2"): 0.1, Setting(1): 0.1}
    assert best_setting(losses) == (1, "")


def test_the_good_range_ends_at_the_first_rate_that_is_much_worse():
    losses = {1: 0.12, 2: 0.5, 4: 0.15, 8: 0.1, 16: 0.19, 32: 0.21}
    assert good_range(losses) == (4, 16)
    assert good_range({1: 0.1, 2: 0.5, 4: math.inf}) == (1, 1)
