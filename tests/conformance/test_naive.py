"""The fast form is the paper's equation, in values and in gradients."""

from operator import attrgetter
from typing import Any

import pytest
import torch

from attention_zoo import create_position
from attention_zoo.masks import Mask
from tests.conformance.cases import (
    Case,
    backends,
    over,
    over_values,
    plain_cases,
    representative_pairs,
)
from tests.conformance.definition import visible
from tests.conformance.numbers import assert_same, values_and_gradients

LENGTHS = [7, *(pytest.param(length, marks=pytest.mark.exhaustive) for length in (1, 65))]


def hold_against_naive(
    case: Case, queries: int, keys: int, mask: Mask = Mask(), **changes: Any
) -> None:
    """With every backend that the entry can choose; `changes` are of its options."""
    inputs = case.inputs(queries, keys)
    for backend in backends(case.name):
        attention = case.attention(**backend, **changes)
        sees = visible(attention, mask, len(inputs[0]), queries, keys)
        assert_same(
            values_and_gradients(
                lambda *args, attention=attention: attention(*args, mask=mask), attention, *inputs
            ),
            values_and_gradients(
                lambda *args, attention=attention, sees=sees: attention.naive(
                    args[0], args[-1], sees, torch.arange(queries)[None]
                ),
                attention,
                *inputs,
            ),
        )


@pytest.mark.parametrize("length", LENGTHS)
@over(plain_cases(), every_entry=True)
def test_forward_is_the_equation(case: Case, length: int) -> None:
    hold_against_naive(case, length, length)


@over(representative_pairs(), kind=attrgetter("family_kind"))
def test_forward_is_the_equation_with_an_encoding(case: Case) -> None:
    hold_against_naive(case, 7, 7)


@pytest.mark.parametrize("encoding", ["rotary", "alibi"])
def test_forward_is_the_equation_at_positions_of_a_longer_sequence(encoding: str) -> None:
    case = Case("multi_head", "causal")
    attention = case.attention()
    randomized = create_position(
        "randomized", encoding=encoding, num_positions=65, max_length=7, **attention.position_sizes
    )
    attention.attach_position(randomized, shared=True)
    positions = randomized.eval().map_positions(torch.arange(7)[None])
    (x,) = case.inputs(7)
    sees = visible(attention, Mask(), len(x), 7, 7)
    assert_same(
        values_and_gradients(lambda x: attention(x, positions=positions), attention, x),
        values_and_gradients(lambda x: attention.naive(x, x, sees, positions), attention, x),
    )


@over_values(
    "queries,keys",
    [(7, 65), (7, 1), (1, 7), (65, 7)],
    (case for case in plain_cases() if case.role == "cross"),
)
def test_cross_attention_of_unequal_lengths(case: Case, queries: int, keys: int) -> None:
    hold_against_naive(case, queries, keys)
