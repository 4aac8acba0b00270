"""What the charts of a report show."""

import pytest

from attention_zoo.tasks.analysis.report.charts import new_chart, pareto_front, set_cost_axis
from attention_zoo.tasks.analysis.report.measures import COST, QUALITY
from attention_zoo.tasks.views.charts import figure_svg, svg_settings

MEASURES = {x.key: x for x in (*COST, *QUALITY)}


@pytest.mark.parametrize(
    ("cost", "metric", "expected"),
    [
        ("seconds", "test/bleu", [(1, 5), (2, 6), (4, 9)]),
        ("seconds", "test/loss", [(1, 3)]),
        ("tokens_per_second", "test/bleu", [(4, 9)]),
        ("tokens_per_second", "test/loss", [(4, 9), (3, 6), (2, 4), (1, 3)]),
    ],
)
def test_a_pareto_front_has_what_no_other_beats_in_both(cost, metric, expected):
    points = [(4, 9), (1, 5), (2, 6), (2, 4), (3, 6), (1, 3), (4, 9)]
    assert pareto_front(points, MEASURES[cost], MEASURES[metric]) == expected


@pytest.mark.parametrize("cost", MEASURES)
def test_an_axis_of_costs_has_numbers_in_full(cost):
    with svg_settings():
        figure, axes = new_chart("quality by cost")
        unit = set_cost_axis(axes, MEASURES[cost], 2.0**12, 2.0**20)
        axes.plot([2.0**12 / unit, 2.0**20 / unit], [0.0, 1.0])
        svg = figure_svg(figure, "quality by cost")
    assert "mathdefault" not in svg
