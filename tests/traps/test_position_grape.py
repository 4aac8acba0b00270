"""Traps of group representational positions."""

import pytest
import torch

from attention_zoo.zoo import Role
from tests.conformance.numbers import assert_same, default_dtype
from tests.traps.test_position_content import HEADS, WIDTH, built, heads, read, row, zeroed

POSITIONS = torch.arange(7)[None]


@pytest.mark.parametrize("role", ["causal", "global"])
def test_content_of_nothing_leaves_a_multiple_of_alibi(role: Role) -> None:
    """softplus(0) twice, not once: 2·ln 2."""
    grape, zeros = built("grape_additive", role), torch.zeros(2, HEADS, 7, WIDTH)
    torch.nn.init.constant_(grape.raw_rate, 1.0)
    rate = torch.nn.functional.softplus(torch.ones(())) * 2 * torch.log(torch.tensor(2.0))
    alibi = built("alibi", role).score_bias(POSITIONS, POSITIONS)
    found = read(grape, zeros, zeros, POSITIONS, POSITIONS)
    assert_same(found, (rate * alibi).expand_as(found))


def test_no_score_rises_and_a_token_keeps_its_own() -> None:
    grape, q, k = built("grape_additive"), 10 * heads(7), 10 * heads(7)
    bias = read(grape, q, k, POSITIONS, POSITIONS)
    assert (bias <= 0).all()
    assert not bias.diagonal(dim1=-2, dim2=-1).any()


def test_the_length_of_a_direction_has_no_effect() -> None:
    grape, q, k = built("grape_additive"), heads(7), heads(7)
    before = read(grape, q, k, POSITIONS, POSITIONS)
    with torch.no_grad():
        grape.query_direction.mul_(3.0)
        grape.key_direction.mul_(0.2)
    assert_same(read(grape, q, k, POSITIONS, POSITIONS), before)
    zeroed(grape.query_direction, grape.key_direction)
    assert read(grape, q, k, POSITIONS, POSITIONS).isfinite().all()


def test_every_frequency_learns() -> None:
    """From the products of queries and keys at different positions."""
    grape, q, k = built("grape_multiplicative"), heads(7), heads(7)
    rotated_q, rotated_k = grape.rotate(q, k, POSITIONS)
    (rotated_q @ rotated_k.transpose(-2, -1)).sin().sum().backward()
    assert grape.log_ratio.grad.ne(0).all()


def test_a_far_distance_is_not_rounded_to_bfloat16() -> None:
    """Distances of 1,003 and 1,000 differ, in autocast too."""
    with default_dtype("float32"):
        grape = built("grape_additive")
        q, k = torch.ones(1, HEADS, 1, WIDTH).bfloat16(), torch.ones(1, HEADS, 2, WIDTH).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            bias = read(grape, q, k, row(1003), row(0, 3))
        torch.testing.assert_close(bias[..., 0] / bias[..., 1], torch.full((1, HEADS, 1), 1.003))
