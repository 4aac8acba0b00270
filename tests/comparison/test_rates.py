"""Which learning rates are tried, and what is read off their losses."""

import math

import pytest

from attention_zoo.tasks.comparison.rates import (
    best_rates,
    first_rates,
    further_rates,
    good_range,
    is_at_edge,
)


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


def test_rates_that_diverge_do_not_go_on():
    losses = {1: 0.3, 10: 0.1, 100: math.inf, 1000: 0.2}
    assert best_rates(losses, 2) == [10, 1000]
    assert best_rates(losses, 4) == [1, 10, 1000]


def test_the_good_range_ends_at_the_first_rate_that_is_much_worse():
    losses = {1: 0.12, 2: 0.5, 4: 0.15, 8: 0.1, 16: 0.19, 32: 0.21}
    assert good_range(losses) == (4, 16)
    assert good_range({1: 0.1, 2: 0.5, 4: math.inf}) == (1, 1)
