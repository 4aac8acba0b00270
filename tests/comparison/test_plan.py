"""How long the trainings of a comparison are within a budget."""

import pytest

from attention_zoo.errors import UserError
from attention_zoo.tasks.comparison.plan import (
    Budget,
    Cost,
    Schedule,
    expected_seconds,
    parse_budget,
    steps_within,
)

SCHEDULE = Schedule(trials=7, option_trials=2, seeds=3)
COSTS = [Cost(0.1, 10.0, 1000.0, 1e9), Cost(0.3, 20.0, 1000.0, 2e9)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2h", Budget(7200, "seconds")),
        ("30min", Budget(1800, "seconds")),
        ("90 s", Budget(90, "seconds")),
        ("5e7 tokens", Budget(5e7, "tokens")),
        ("5e7tokens", Budget(5e7, "tokens")),
        ("1.5e15 FLOPs", Budget(1.5e15, "flops")),
    ],
)
def test_a_budget_has_a_number_and_a_unit(text, expected):
    assert parse_budget(text) == expected


@pytest.mark.parametrize(
    "text", ["2", "h", "0h", "-1h", "2 weeks", "", "1..2h", None, True, "nanh"]
)
def test_another_budget_is_refused_with_examples(text):
    with pytest.raises(UserError, match="such as 2h, 30min, '5e7 tokens'"):
        parse_budget(text)


def test_a_candidate_trains_as_many_lengths_as_its_schedule_says():
    assert SCHEDULE.runs == 9 + 2 + 3
    assert SCHEDULE.lengths == 9 / 4 + 2 + 3
    assert Schedule(trials=10, option_trials=2, seeds=3).kept == 3
    without_options = Schedule(trials=7, option_trials=0, seeds=3)
    assert without_options.runs == 7 + 2 + 3
    assert without_options.lengths == 7 / 4 + 2 + 3


@pytest.mark.parametrize(
    "budget", [Budget(7000, "seconds"), Budget(5e7, "tokens"), Budget(1e14, "flops")]
)
@pytest.mark.parametrize("jobs", [1, 2])
def test_the_steps_use_the_budget_and_no_more(budget, jobs):
    def spent(steps):
        if budget.kind == "seconds":
            return expected_seconds(steps, COSTS, SCHEDULE, jobs=jobs)
        return sum(SCHEDULE.lengths * steps * getattr(cost, budget.kind) for cost in COSTS)

    steps = steps_within(budget, COSTS, SCHEDULE, jobs=jobs)
    assert spent(steps) <= budget.amount < spent(steps + 1)


def test_a_budget_for_too_few_steps_is_refused_with_their_number():
    with pytest.raises(UserError, match="must allow 40 steps at full length, got 0 for 2 candid"):
        steps_within(Budget(60, "seconds"), COSTS, SCHEDULE, jobs=1)
    with pytest.raises(UserError, match="got 13 for 2 candidates with 14 trainings each"):
        steps_within(Budget(2e5, "tokens"), COSTS, SCHEDULE, jobs=1)


def test_the_cost_of_a_run_is_that_of_its_steps_and_what_is_besides():
    results = {"tokens_seen": 4000, "tokens_per_second": 2000.0, "steps": 20}
    cost = Cost.of_run(results | {"training_flops_per_token": 3.0}, seconds=12.0)
    assert cost == Cost(seconds=0.1, overhead=10.0, tokens=200.0, flops=600.0)
