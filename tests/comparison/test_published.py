"""Published results beside ours."""

import pytest

from attention_zoo.tasks.comparison.published import FOLDER, agreement, compare_with_published

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


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_file_is_set_beside_ours(benchmark):
    ours = {"multi_head": 0.9, "delta": 0.8, "gated_linear": 0.1, "own": 0.5}
    published = compare_with_published(benchmark, ours)
    assert published is not None and published.setting and published.sentences
    if published.table is not None:
        own = next(row for row in published.table.rows if row[0] == "own")
        assert own[1] == "0.500" and set(own[2:]) == {"–"}
        assert len({len(row) for row in published.table.rows}) == 1


def test_a_benchmark_may_have_no_published_results():
    assert compare_with_published("nothing", {"a": 1.0}) is None
