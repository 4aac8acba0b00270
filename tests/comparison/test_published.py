"""Published results beside ours."""

import pytest

from attention_zoo.tasks.analysis.report.comparison import Comparison
from attention_zoo.tasks.comparison.published import (
    FOLDER,
    agreement,
    compare_orders,
    compare_with_published,
)
from attention_zoo.tasks.comparison.scoreboard import Entry, compare_entries

BENCHMARKS = sorted(x.name.removesuffix(".yaml") for x in FOLDER.iterdir())


def test_the_same_order_of_three_has_a_chance_of_one_in_six():
    theirs = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert agreement(theirs, {"a": 0.1, "b": 0.2, "c": 0.3}) == (3, 3, pytest.approx(1 / 6))
    assert agreement(theirs, {"a": 0.3, "b": 0.2, "c": 0.1}) == (0, 3, 1.0)
    # Two of the orders have two pairs as theirs, and one has three.
    assert agreement(theirs, {"a": 0.2, "b": 0.1, "c": 0.3}) == (2, 3, pytest.approx(3 / 6))


def test_equal_values_agree_with_nothing():
    assert agreement({"a": 1.0, "b": 1.0, "c": 3.0}, {"a": 1, "b": 2, "c": 3})[:2] == (2, 2)


def test_many_mechanisms_are_compared_by_drawn_orders():
    theirs = {f"m{i}": float(i) for i in range(10)}
    same, pairs, p_value = agreement(theirs, theirs)
    assert (same, pairs) == (45, 45) and p_value < 0.001


def compared(**values: tuple[float, ...]) -> Comparison:
    """A comparison of rows with these accuracies, one for each seed."""
    entries = {
        name: Entry([{"test/accuracy": x} for x in each], {"steps": 40, "is_tuned": True})
        for name, each in values.items()
    }
    return compare_entries("any", entries)


def test_a_published_order_is_tested_for_each_of_its_pairs():
    ordering = {"claim": "…", "better": ["a"], "worse": ["b", "c", "d", "missing"]}
    source = {"source": "Paper", "orderings": [ordering], "figures": {"b": 1, "a": 9, "d": 3}}
    near, far = (0.90, 0.91, 0.92), (0.20, 0.21, 0.22)
    comparison = compared(a=near, b=far, c=(0.1, 0.9, 0.95), d=(0.990, 0.991, 0.992))
    rows = list(compare_orders(source, comparison))
    assert [row[:4] for row in rows] == [
        ["Paper", "a > b", "0.910 and 0.210", "yes"],
        ["Paper", "a > c", "0.910 and 0.650", "not shown"],
        ["Paper", "a > d", "0.910 and 0.991", "no: reversed"],
        ["Paper", "a > d > b", "2 of 3 pairs", "not shown"],
    ]
    assert rows[0][4] == "< 0.001"
    assert [float(row[4].removeprefix("< ")) < 0.05 for row in rows] == [True, False, True, False]
    one_seed = list(compare_orders(source, compared(a=(0.9,), b=(0.2,))))
    assert one_seed == [["Paper", "a > b", "0.900 and 0.200", "not tested", "one seed: no test"]]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_file_is_set_beside_ours(benchmark):
    names = ("multi_head", "delta", "gated_linear", "lstm", "own")
    published = compare_with_published(benchmark, compared(**{x: (0.5, 0.6) for x in names}))
    assert published is not None and published.setting and published.sentences
    if published.figures is not None:
        own = next(row for row in published.figures.rows if row[0] == "own")
        assert own[1] == "0.550" and set(own[2:]) == {"–"}
        assert len({len(row) for row in published.figures.rows}) == 1


def test_a_benchmark_may_have_no_published_results():
    assert compare_with_published("nothing", compared(a=(1.0, 1.0))) is None


def test_a_scoreboard_has_the_measure_that_others_report():
    results = {"test/exact_match": 0.02, "test/accuracy": 0.4}
    entry = {
        name: Entry([results, {x: y + 0.01 for x, y in results.items()}], {"is_tuned": True})
        for name in ("a", "b")
    }
    entry["b"].results[0]["test/exact_match"] = 0.03
    entry["b"].results[0]["test/accuracy"] = 0.5
    assert compare_entries("mad_recall", entry).primary_metric.key == "test/accuracy"
    assert compare_entries("copy", entry).primary_metric.key == "test/exact_match"
