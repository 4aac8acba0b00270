"""The charts of losses by learning rate."""

import math

import pytest

from attention_zoo.tasks.comparison.rate_charts import draw_rates, rate_ticks
from attention_zoo.tasks.comparison.settings import Setting, Trials


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.002, 0.008, [0.002, 0.008]),
        (0.001, 0.1, [0.001, 0.01, 0.1]),
        (0.00033, 0.27, [0.00033, 0.01, 0.27]),
        (1e-7, 100, [1e-7, 1e-4, 1e-2, 100]),
        (0.01, 0.01, [0.01, 0.01]),
    ],
)
def test_ticks_are_the_ends_and_powers_of_ten_apart_from_them(low, high, expected):
    assert rate_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("count", [1, 3, 5, 30])
def test_every_candidate_has_a_panel(count):
    losses = {Setting(0.001): 2.0, Setting(0.01): 1.0, Setting(0.1): math.inf}
    trials = [Trials(f"candidate {n}", losses, Setting(0.01)) for n in range(count)]
    chart = draw_rates(trials)
    # The label above the panel, and the one that the pointer shows.
    assert all(chart.count(f">candidate {n}<") >= 2 for n in range(count))


def test_a_candidate_that_diverges_at_all_rates_has_a_panel():
    chart = draw_rates([Trials("wild", {Setting(0.01): math.inf, Setting(0.1): math.inf}, None)])
    assert ">wild<" in chart
