"""Which options of a candidate are tuned, and which settings its trials have."""

import math

import pytest

from attention_zoo.tasks.comparison.candidate import Candidate
from attention_zoo.tasks.comparison.plan import Schedule
from attention_zoo.tasks.comparison.search_spaces import search_space
from attention_zoo.tasks.comparison.settings import Setting, describe_option_trials
from attention_zoo.tasks.comparison.tuning import Tuner

TEMPERATURES = ["attention.temperature=4.0", "attention.temperature=64.0"]


def config(**changes):
    chosen = {
        "task": {"name": "language_modeling"},
        "model": {"layers": 2, "decoder_layers": None},
        "attention": {"name": "gated_linear", "temperature": 16.0},
        "position": None,
    }
    return chosen | dict.fromkeys(["decoder_attention", "cross_attention"]) | changes


def stack(pattern):
    kinds = {
        "a": {"name": "multi_head"},
        "b": {"name": "gated_linear", "temperature": 16.0},
        "c": {"name": "cosine", "temperature": 0.1},
        "d": {"name": "gated_slot", "temperature": 8.0},  # which no pattern has
    }
    return config(stack={"pattern": pattern, "decoder_pattern": None, **kinds})


def test_the_values_that_a_card_names_are_overrides():
    assert search_space(config(), ["attention=gated_linear"]) == TEMPERATURES
    assert search_space(config(attention={"name": "multi_head"}), []) == []


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_an_option_that_is_given_is_not_tuned(prefix):
    assert search_space(config(), [f"{prefix}attention.temperature=16.0"]) == []


def test_an_option_that_an_experiment_has_changed_is_not_tuned():
    changed = config(attention={"name": "gated_linear", "temperature": 8.0})
    assert search_space(changed, []) == []


def test_the_options_of_a_stack_are_those_of_the_kinds_that_its_layers_have():
    of_b = ["stack.b.temperature=4.0", "stack.b.temperature=64.0"]
    of_c = ["stack.c.temperature=0.03", "stack.c.temperature=0.3"]
    assert search_space(stack("ab"), []) == of_b
    assert search_space(stack("cb"), []) == [*of_c, *of_b]
    assert search_space(stack("cb"), ["stack.b.temperature=16.0"]) == of_c


LOSSES = {0.1: 0.3, 1.0: 0.1, 10.0: 0.2}


def settings(count, losses=LOSSES, options=TEMPERATURES):
    candidate = Candidate([], "x", 64, "x", 1.0, search_space=list(options))
    candidate.losses = {Setting(rate): loss for rate, loss in losses.items()}
    schedule = Schedule(trials=5, option_trials=count, seeds=3)
    return candidate, Tuner(None, schedule, 10.0).option_settings(candidate, count)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [(1.0, TEMPERATURES[0])]),
        (2, [(1.0, x) for x in TEMPERATURES]),
        (3, [*((1.0, x) for x in TEMPERATURES), (3.16, "")]),
        (4, [*((1.0, x) for x in TEMPERATURES), (0.316, ""), (3.16, "")]),
    ],
)
def test_options_are_tried_at_the_best_rate_and_rates_where_there_are_too_few(count, expected):
    assert settings(count)[1] == expected


def test_an_option_is_tried_once():
    candidate, first = settings(1)
    candidate.losses[first[0]] = 0.5
    assert Tuner(None, None, 10.0).option_settings(candidate, 1) == [(1.0, TEMPERATURES[1])]
    assert candidate.options_tried == TEMPERATURES[:1]
    assert candidate.rate_losses == LOSSES


def test_where_all_rates_diverge_lower_ones_are_tried():
    assert settings(2, dict.fromkeys(LOSSES, math.inf))[1] == [(0.001, ""), (0.01, "")]


def test_where_the_best_rate_is_at_the_edge_rates_beyond_are_tried():
    assert settings(2, LOSSES | {10.0: 0.05})[1] == [(100.0, ""), (1000.0, "")]


def test_the_page_says_what_each_candidate_tries():
    sentences = list(describe_option_trials({"a": ["x=1", "x=2"], "b": ["y=1"], "c": []}, 2))
    assert sentences == [
        "Tuned besides the learning rate: `a`: x=1, x=2; `b`: y=1.",
        "Further rates in place of options: `b` (1), `c` (2).",
    ]
    (sentence,) = describe_option_trials({"b": [], "c": []}, 2)
    assert sentence == "No candidate has an option to tune: each tries 2 further rates."
    assert list(describe_option_trials({"b": [], "c": []}, 0)) == []
