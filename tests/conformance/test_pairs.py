"""Every attention × encoding × role is declared by the cards, or refused with the choices."""

from itertools import product

import pytest
import torch

from attention_zoo import Unsupported, create_attention, create_position
from attention_zoo.zoo import ATTENTION, POSITION, ROLES, Role, check_pair
from tests.conformance.cases import (
    DIM,
    Case,
    fits,
    inside,
    over,
    pairs,
    small_options,
)
from tests.conformance.configs import HEADS, options
from tests.conformance.numbers import assert_same, values_and_gradients

TRIPLES = list(product(ATTENTION, POSITION, ROLES))


@pytest.mark.parametrize(("name", "position", "role"), TRIPLES)
def test_a_pair_is_declared_or_refused(name: str, position: str, role: Role) -> None:
    card, other = ATTENTION.card(name), POSITION.card(position)
    if role not in card.roles:
        with pytest.raises(Unsupported, match=f"{name} cannot be {role} attention; it can be"):
            check_pair(card, role, other)
    elif role == "cross" and inside(other):
        with pytest.raises(Unsupported, match=position):
            check_pair(card, role, other)
    elif role == "cross" or fits(card, role, other):
        check_pair(card, role, other)
    else:
        with pytest.raises(Unsupported, match=f"(?s){position}|{name}"):
            check_pair(card, role, other)


@pytest.mark.parametrize(("name", "position", "role"), TRIPLES)
def test_an_attention_alone_takes_what_acts_on_it(name: str, position: str, role: Role) -> None:
    """`create_attention(position=…)` runs, or refuses what would have no effect."""
    card, other = ATTENTION.card(name), POSITION.card(position)
    legal = role in card.roles and (
        not other.acts or (role != "cross" and inside(other) and fits(card, role, other))
    )
    if legal:
        create_attention(name, dim=DIM, role=role, position=position, **small_options(name))
    else:
        with pytest.raises(Unsupported):
            create_attention(name, dim=DIM, role=role, position=position, **small_options(name))


@over(pairs())
def test_an_encoding_changes_the_output(case: Case) -> None:
    """It is not taken in and then ignored."""
    attention = case.attention()
    plain = Case(case.name, case.role).attention()
    plain.load_state_dict(attention.state_dict(), strict=False)
    inputs = case.inputs(9)
    assert not torch.allclose(attention(*inputs), plain(*inputs))


@over(case for case in pairs() if POSITION.card(str(case.position)).relative)
def test_an_encoding_sees_distances_only(case: Case) -> None:
    attention = case.attention()
    (x,) = case.inputs(9)
    places = torch.arange(9)[None]
    for shift in (1, 100, torch.tensor([[3], [50]])):
        assert_same(
            values_and_gradients(
                lambda x, p=places + shift: attention(x, positions=p), attention, x
            ),
            values_and_gradients(lambda x: attention(x, positions=places), attention, x),
        )


@pytest.mark.parametrize("name", list(POSITION))
def test_an_encoding_acts_where_its_card_says(name: str) -> None:
    """Each hook of the contract is neutral, or the card names where it acts."""
    card = POSITION.card(name)
    width, length = 4, 70  # longer than what models are trained at by default
    for role in card.roles:
        position = create_position(
            name, dim=DIM, heads=HEADS, head_dim=width, role=role, **options("position", name)
        )
        with torch.no_grad():
            for parameter in position.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        places = torch.arange(length)[None]
        x = torch.randn(2, length, DIM)
        q, k = torch.randn(2, HEADS, length, width), torch.randn(2, HEADS, length, width)
        placed = position.place(places)
        embedded = position.embed(x, places)
        rotated = position.rotate(q, k, places)
        turned = position.turn(q, k, places, places)
        bias = position.bias(places, places)
        triangle = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        read = position.read(
            *rotated,
            places,
            places,
            visible=triangle if role == "causal" else None,
            scale=width**-0.5,
            kept=position.keep(x),
        )
        given = position.give(torch.rand(2, HEADS, length, length), places, places)
        assert torch.equal(placed, places) is ("positions" not in card.acts)
        assert torch.equal(embedded, x) is ("embeddings" not in card.acts)
        same = all(map(torch.equal, rotated, (q, k)))
        assert same is ("heads" not in card.acts and "width" not in card.acts)
        assert (rotated[0].shape == q.shape) is ("width" not in card.acts)
        assert all(map(torch.equal, turned, (q, k))) is ("length" not in card.acts)
        assert (bias is None) is ("scores" not in card.acts)
        assert (read is None) is ("content" not in card.acts)
        assert (given is None) is ("values" not in card.acts)
        assert bias is None or bias.shape in (
            (1, HEADS, length, length),
            (2, HEADS, length, length),
        )
        assert read is None or read.shape == (2, HEADS, length, length)
        assert given is None or given.shape == q.shape
