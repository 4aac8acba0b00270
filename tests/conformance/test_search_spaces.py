"""The options that a card names for tuning have an effect, and cost nothing."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.factory import options_of
from attention_zoo.zoo import ATTENTION
from tests.conformance.cases import DIM, Case, mark_exhaustive, small_options
from tests.conformance.configs import options
from tests.conformance.test_naive import hold_against_naive

LENGTH = 9


def values() -> Iterator[tuple[tuple[str, str, Any], str]]:
    """Every entry with each value of each option that its card names; options are the kinds."""
    for name in ATTENTION:
        for option, others in ATTENTION.card(name).search_space.items():
            for value in others:
                yield (name, option, value), option


every_value = pytest.mark.parametrize(("name", "option", "value"), mark_exhaustive(values()))


def create(name: str, **changes: Any) -> Attention:
    torch.manual_seed(0)
    role = ATTENTION.card(name).roles[0]
    return create_attention(name, dim=DIM, role=role, **small_options(name) | changes)


def count_flops(attention: Attention) -> int:
    x = torch.randn(2, LENGTH, DIM)
    with FlopCounterMode(display=False) as counter:
        attention(*[x] * (2 if attention.role == "cross" else 1)).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", [x for x in ATTENTION if ATTENTION.card(x).search_space])
def test_a_card_names_two_or_three_values_of_options_that_the_yaml_has(name: str) -> None:
    space, legal = ATTENTION.card(name).search_space, options_of(ATTENTION[name])
    for option, others in space.items():
        assert option in legal and option in options("attention", name)
        assert legal[option].default not in others, "the default is tried with every rate"
        assert 2 <= len({*others}) == len(others) <= 3


@every_value
def test_every_value_costs_what_the_default_does(name: str, option: str, value: Any) -> None:
    default, other = create(name), create(name, **{option: value})
    assert [(key, x.shape) for key, x in default.state_dict().items()] == [
        (key, x.shape) for key, x in other.state_dict().items()
    ]
    assert count_flops(default) == count_flops(other) > 0
    if default.card.cache:
        tokens = (1, LENGTH, 1024)
        assert [*map(default.decode_state, tokens)] == [*map(other.decode_state, tokens)]


@every_value
def test_every_value_changes_what_the_model_starts_with(name: str, option: str, value: Any) -> None:
    x = torch.randn(2, LENGTH, DIM)
    default, other = (create(name, **changes)(x) for changes in ({}, {option: value}))
    assert not torch.equal(default, other)


@every_value
def test_every_value_is_the_equation(name: str, option: str, value: Any) -> None:
    case = Case(name, ATTENTION.card(name).roles[0])
    hold_against_naive(case, LENGTH, LENGTH, **{option: value})
