"""Attention as a dictionary that answers with a mixture."""

import doctest

import pytest
import torch

from attention_zoo import UserError, lookup, soft_lookup

MEANINGS = {
    "type": [1.0, 0.1],
    "species": [0.9, 0.3],
    "color": [0.25, 0.8],
    "age": [-0.6, 0.5],
}
CAR = {"color": "blue", "age": 22, "type": "pickup"}


def test_the_example_is_true() -> None:
    found = doctest.testmod(lookup)
    assert found.attempted > 4 and not found.failed


def test_weights_add_up_to_one_and_low_temperatures_choose() -> None:
    for temperature in (10.0, 1.0, 0.1):
        answer = soft_lookup(CAR, "species", MEANINGS, temperature=temperature)
        assert sum(answer.values()).item() == pytest.approx(1.0)
        assert max(answer, key=lambda value: answer[value]) == "pickup"
    assert soft_lookup(CAR, "species", MEANINGS, temperature=1e-3)["pickup"] == 1.0
    assert soft_lookup({"a": 1}, "b", {"a": [1, 0], "b": [2, 1]}) == 1.0, "whole numbers will do"
    even = soft_lookup(CAR, "species", MEANINGS, temperature=1e6)
    assert even["blue"].item() == pytest.approx(1 / 3, abs=1e-5)


def test_it_is_scaled_dot_product_attention() -> None:
    words = {name: torch.randn(4) for name in "abcd"}
    values = {name: torch.randn(3) for name in "abc"}
    out = torch.nn.functional.scaled_dot_product_attention(
        words["d"][None], torch.stack([words[x] for x in values]), torch.stack([*values.values()])
    )
    torch.testing.assert_close(soft_lookup(values, "d", words, temperature=2.0), out[0])


def test_gradients_reach_query_keys_and_values() -> None:
    words = {name: torch.randn(2, dtype=torch.float64, requires_grad=True) for name in "ab?"}
    values = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in "ab"]

    def answer(asked, a, b, first, second):
        meanings = {"?": asked, "a": a, "b": b}
        return soft_lookup({"a": first, "b": second}, "?", meanings)

    assert torch.autograd.gradcheck(answer, (words["?"], words["a"], words["b"], *values))


def test_equal_values_share_their_weight() -> None:
    answer = soft_lookup({"color": "x", "age": "x", "type": "y"}, "species", MEANINGS)
    apart = soft_lookup(CAR, "species", MEANINGS)
    assert answer["x"].item() == pytest.approx((apart["blue"] + apart[22]).item())


@pytest.mark.parametrize(
    ("entries", "asked", "more", "message"),
    [
        ({}, "species", {}, "at least one entry"),
        (CAR, "wheels", {}, "none of 'wheels'; those with one: type, species"),
        (CAR, "species", {"temperature": 0.0}, "above 0, got 0.0"),
        (CAR, "species", {"temperature": float("nan")}, "above 0, got nan"),
        ({"wide": 1}, "species", {}, r"one width, got shapes \[2\] and \[3\]"),
        (
            {"type": torch.zeros(2), "age": torch.zeros(3)},
            *("species", {}, r"one shape to be mixed, got \[2\], \[3\]"),
        ),
    ],
)
def test_what_has_no_answer_is_refused(entries, asked, more, message) -> None:
    with pytest.raises(UserError, match=message):
        soft_lookup(entries, asked, MEANINGS | {"wide": [1.0, 2.0, 3.0]}, **more)
