"""What the charts of a report show."""

import pytest

from attention_zoo.tasks.analysis.report.charts import pareto_front
from attention_zoo.tasks.analysis.report.measures import COST, QUALITY

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
