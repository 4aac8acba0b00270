"""Every attention × encoding × role runs, or is refused with its reason and the choices."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from attention_zoo import Unsupported, create_attention, create_position
from attention_zoo.attention.base import take_auxiliary_loss
from attention_zoo.models import LanguageModel, Seq2Seq
from attention_zoo.position.base import PositionalEncoding, ScoreInputs
from attention_zoo.tasks.commands.list import list_pairs
from attention_zoo.zoo import ATTENTION, POSITION, ROLES, Role, check_pair
from tests.conformance.cases import (
    DIM,
    Case,
    family,
    fits,
    inside,
    mark_exhaustive,
    moved,
    over,
    representative_pairs,
    small_options,
)
from tests.conformance.configs import HEADS, options
from tests.conformance.numbers import assert_same, values_and_gradients
from tests.conformance.test_models import PAD, language_model, seq2seq, tokens

SOURCE, TARGET = 9, 13  # beyond the lengths that encodings are told they were trained at
PLAYED = [(name, role) for name in ATTENTION for role in ROLES]
REPRESENTATIVES = mark_exhaustive(
    ((name, role), (family(name), role, role in ATTENTION.card(name).roles))
    for name, role in PLAYED
)


def runs(name: str, position: str, role: Role) -> bool:
    """By the cards. Cross-attention has no encoding, but an encoder beside it that has."""
    card, other = ATTENTION.card(name), POSITION.card(position)
    fitting = "global" in other.roles if role == "cross" else fits(card, role, other)
    return role in card.roles and fitting


@pytest.mark.parametrize(("name", "role"), REPRESENTATIVES)
def test_a_model_trains_and_decodes_with_every_encoding_or_refuses_it(
    name: str, role: Role
) -> None:
    """The whole matrix: a step of training, and decoding in chunks, of every pair that is legal."""
    for position in POSITION:
        if runs(name, position, role):
            model = model_of(name, position, role)
            batch = batch_of(role)
            learn(model, batch)
            if role != "global" and ATTENTION.card(name).cache:
                assert_decodes(model, batch)
        else:
            with pytest.raises(Unsupported) as refused:
                model_of(name, position, role)
            said = str(refused.value)
            assert (name in said or position in said) and len(said) > 40


def model_of(name: str, position: str, role: Role) -> LanguageModel | Seq2Seq:
    """A model of one layer with the attention in this role, plain attention in the others."""
    if role == "causal":
        return moved(language_model(name, position, layers=1))
    return moved(seq2seq(name, position, roles=(role,), layers=1))


def batch_of(role: Role) -> tuple[Tensor, ...]:
    return (tokens(2, TARGET),) if role == "causal" else (tokens(2, SOURCE), tokens(2, TARGET))


def learn(model: LanguageModel | Seq2Seq, batch: tuple[Tensor, ...]) -> None:
    """A step down the gradient, which lowers the loss."""
    targets = batch[-1].roll(-1, dims=1)
    model.train()
    losses = []
    for rate in (1e-3, 0.0):
        torch.manual_seed(0)  # The draws of an encoding, or of a mechanism, are the same in both.
        auxiliary = take_auxiliary_loss(model)
        loss = cross_entropy(model(*batch).flatten(0, 1), targets.flatten())
        auxiliary = take_auxiliary_loss(model)
        whole = loss if auxiliary is None else loss + auxiliary
        losses.append(whole.item())
        model.zero_grad()
        whole.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None and parameter.grad.isfinite().all()
                parameter.sub_(rate * parameter.grad)
    assert losses[1] < losses[0]


@torch.no_grad()
def assert_decodes(model: LanguageModel | Seq2Seq, batch: tuple[Tensor, ...]) -> None:
    """In chunks, with a cache, as in one pass."""
    model.eval()
    *sources, target = batch
    whole, cache, outputs = model(*batch), model.new_cache(), []
    for chunk in target.split([5, 1, 1, TARGET - 7], dim=1):
        if isinstance(model, Seq2Seq):
            source_mask = sources[0] != PAD
            memory = model.encode(sources[0], source_mask)
            outputs.append(model.decode(chunk, memory, source_mask, cache=cache))
        else:
            outputs.append(model(chunk, cache=cache))
    assert_same(torch.cat(outputs, dim=1), whole)


def test_the_listed_pairs_are_those_that_run(capsys: pytest.CaptureFixture[str]) -> None:
    """`attention-zoo list pairs=all` prints what the test above walks."""
    found = list(list_pairs())
    assert [(p.attention, p.position, p.role) for p in found] == [
        (name, position, role) for name in ATTENTION for position in POSITION for role in ROLES
    ]
    valid = 0
    for pair in found:
        assert (pair.refusal is None) is runs(pair.attention, pair.position, pair.role)
        valid += pair.refusal is None
    with capsys.disabled():
        count = f"{valid} pairs are valid, {len(found) - valid} are refused"
        print(f"\nattention × position × role: {count}")


@pytest.mark.parametrize(("name", "role"), PLAYED)
def test_a_refusal_names_the_choices(name: str, role: Role) -> None:
    card = ATTENTION.card(name)
    for position in POSITION:
        other = POSITION.card(position)
        if role not in card.roles:
            with pytest.raises(Unsupported, match=f"{name} cannot be {role} attention; it can be"):
                check_pair(card, role, other)
        elif role == "cross" and inside(other):
            with pytest.raises(Unsupported, match=position):
                check_pair(card, role, other)
        elif role != "cross" and not fits(card, role, other):
            with pytest.raises(Unsupported, match=f"(?s){position}|{name}") as refused:
                check_pair(card, role, other)
            assert "none" in str(refused.value) or "it serves" in str(refused.value)


@pytest.mark.parametrize(("name", "role"), REPRESENTATIVES)
def test_an_attention_alone_takes_what_acts_on_it(name: str, role: Role) -> None:
    """`create_attention(position=…)` runs and heeds it, or refuses what would have no effect."""
    card = ATTENTION.card(name)
    for position in POSITION:
        other = POSITION.card(position)
        legal = role in card.roles and (
            not other.acts or (role != "cross" and inside(other) and fits(card, role, other))
        )
        if not legal:
            with pytest.raises(Unsupported):
                create_attention(name, dim=DIM, role=role, position=position, **small_options(name))
            continue
        create_attention(name, dim=DIM, role=role, position=position, **small_options(name))
        if other.acts:
            case = Case(name, role, position)
            attention, plain = case.attention(), Case(name, role).attention()
            plain.load_state_dict(attention.state_dict(), strict=False)
            inputs = case.inputs(9)
            assert not torch.allclose(attention(*inputs), plain(*inputs)), position


@over(case for case in representative_pairs() if POSITION.card(str(case.position)).relative)
def test_an_encoding_sees_distances_only(case: Case) -> None:
    attention = case.attention()
    (x,) = case.inputs(9)
    positions = torch.arange(9)[None]
    for shift in (1, 100, torch.tensor([[3], [50]])):
        assert_same(
            values_and_gradients(
                lambda x, p=positions + shift: attention(x, positions=p), attention, x
            ),
            values_and_gradients(lambda x: attention(x, positions=positions), attention, x),
        )


ROTATIONS = [name for name in POSITION if POSITION.card(name).acts == ("heads",)]


@pytest.mark.parametrize("layout", ["half_split", "interleaved"])
@pytest.mark.parametrize("name", ROTATIONS)
def test_rotating_back_is_the_transpose_of_rotating_a_query(name: str, layout: str) -> None:
    """By the encoding's own way and by that of the base class; each row has its positions."""
    sizes = {"dim": DIM, "heads": HEADS, "head_dim": 4, "role": "causal", "layer": 1}
    position = moved(
        create_position(name, **sizes, **small_options(name, "position") | {"layout": layout})
    )
    positions = torch.arange(9) + torch.tensor([[0], [30]])
    q, y = torch.randn(2, HEADS, 9, 4), torch.randn(2, HEADS, 9, 4)
    product = (position.rotate(q, q, positions)[0] * y).sum(dim=-1)
    for back in (position.rotate_back, partial(PositionalEncoding.rotate_back, position)):
        assert_same((q * back(y, positions)).sum(dim=-1), product)


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
        positions = torch.arange(length)[None]
        x = torch.randn(2, length, DIM)
        q, k = torch.randn(2, HEADS, length, width), torch.randn(2, HEADS, length, width)
        placed = position.map_positions(positions)
        embedded = position.embed(x, positions)
        rotated = position.rotate(q, k, positions)
        turned = position.rotate_by_length(q, k, positions, positions)
        bias = position.score_bias(positions, positions)
        triangle = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        seen = triangle if role == "causal" else None
        read = position.content_bias(
            ScoreInputs(
                *rotated,
                positions,
                positions,
                seen,
                scale=width**-0.5,
                features=position.cached_features(x),
            )
        )
        given = position.value_bias(torch.rand(2, HEADS, length, length), positions, positions)
        assert torch.equal(placed, positions) is ("positions" not in card.acts)
        assert torch.equal(embedded, x) is ("embeddings" not in card.acts)
        same = all(map(torch.equal, rotated, (q, k)))
        if "width" not in card.acts:
            back = position.rotate_back(q, positions)
            assert torch.equal(back, q) is ("heads" not in card.acts)
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
