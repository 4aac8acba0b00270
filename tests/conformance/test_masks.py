"""Every field of the mask is obeyed if the card declares it, and refused if it does not."""

from dataclasses import fields
from itertools import product
from operator import attrgetter

import pytest
import torch

from attention_zoo import UserError
from attention_zoo.masks import Mask
from tests.conformance.cases import (
    Case,
    backends,
    mark_exhaustive,
    over,
    over_values,
    plain_cases,
    positioned_cases,
)
from tests.conformance.definition import key_mask, packed
from tests.conformance.numbers import values_and_gradients
from tests.conformance.test_naive import hold_against_naive

LENGTH = 8


def field(name: str, case: Case, length: int) -> dict[str, object]:
    """A value for a field of the mask, with what must stand beside it."""
    segment_ids = packed([length // 2 - 1, 1, length - length // 2], 2)
    beside_cross = {"query_segment_ids": segment_ids.flip(0)} if case.role == "cross" else {}
    values: dict[str, dict[str, object]] = {
        "causal": {"causal": True},
        "window": {"window": 3},
        "key_mask": {"key_mask": key_mask("left", 2, length)},
        "segment_ids": {"segment_ids": segment_ids, **beside_cross},
        "query_segment_ids": {"segment_ids": segment_ids, "query_segment_ids": segment_ids.flip(0)},
    }
    return values[name]


@pytest.mark.parametrize(
    "case,name",
    mark_exhaustive(
        ((case, field.name), (case.kind_of_any_role, field.name, case.honours(field.name)))
        for case, field in product(plain_cases(), fields(Mask))
    ),
    ids=str,
)
def test_a_field_is_obeyed_or_refused(case: Case, name: str) -> None:
    mask = Mask(**field(name, case, LENGTH))
    if case.honours(name):
        hold_against_naive(case, LENGTH, LENGTH, mask)
    else:
        with pytest.raises(UserError, match=name):
            case.attention()(*case.inputs(LENGTH), mask=mask)
        with pytest.raises(UserError, match=name):
            case.attention().attention_map(*case.inputs(LENGTH), mask=mask)


@over(positioned_cases(), kind=attrgetter("family_kind"))
def test_all_fields_at_once(case: Case) -> None:
    hold_under_all_fields(case, LENGTH)


@over(plain_cases(), kind=attrgetter("family_kind"))
def test_all_fields_at_once_over_blocks(case: Case) -> None:
    """Longer than the blocks and chunks that entries work on."""
    hold_under_all_fields(case, 66)


def hold_under_all_fields(case: Case, length: int) -> None:
    names = [field.name for field in fields(Mask) if case.honours(field.name)]
    mask = Mask(**{k: v for name in names for k, v in field(name, case, length).items()})
    hold_against_naive(case, length, length, mask)


@over_values(
    "window", [3, 1, 2, 64, 100], (case for case in plain_cases() if case.honours("window"))
)
def test_windows_of_every_size(case: Case, window: int) -> None:
    """Also wider and narrower than the entry's own."""
    hold_against_naive(case, 10, 10, Mask(window=window))


@over(case for case in plain_cases() if case.honours("key_mask"))
def test_a_query_that_sees_nothing_gives_zeros(case: Case) -> None:
    """Rows without any real key; and where it is causal, those before the first real key."""
    mask = Mask(key_mask=torch.tensor([[False] * 7, [False] * 3 + [True] * 4, [True] * 7]))
    inputs = case.inputs(7, batch=3)
    for backend in backends(case.name):
        attention = case.attention(**backend)
        out, *gradients = values_and_gradients(
            lambda *args, attention=attention: attention(*args, mask=mask), attention, *inputs
        )
        assert (out[0] == 0).all()
        assert out[2].ne(0).any(dim=-1).all()
        if case.role == "causal":
            assert (out[1, :3] == 0).all()
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert (gradients[0][0] == 0).all()
