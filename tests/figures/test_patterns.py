"""Thumbnails of masks and biases: all of the zoo's are there, and show what they are called."""

from dataclasses import fields

import pytest
import torch

from attention_zoo import create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.masks import Mask
from attention_zoo.tasks.views.figures import patterns
from attention_zoo.zoo import ATTENTION, POSITION
from tests.conformance.cases import small_options
from tests.conformance.definition import visible
from tests.figures.canvas import assert_legible, shown_texts

LENGTH = patterns._TOKENS


@pytest.fixture(scope="module")
def thumbnails():
    return list(patterns.pattern_thumbnails())


@pytest.fixture(scope="module")
def added():
    return list(patterns.bias_thumbnails())


def named(found, name):
    return [one for one in found if one.name == name]


def test_every_field_of_a_mask_is_shown():
    shown = {word for one in patterns.mask_thumbnails() for word in (one.name, *one.notes)}
    for field in fields(Mask):
        assert {field.name, f"+ {field.name}"} & shown, field.name


@pytest.mark.parametrize("name", [*ATTENTION])
def test_what_has_a_window_a_pattern_or_a_choice_is_shown(name, thumbnails):
    card = ATTENTION.card(name)
    attention = create_attention(name, dim=16, role=card.roles[0], **small_options(name))
    patterned = (
        attention.window or type(attention).is_visible is not Attention.is_visible or card.chooses
    )
    if patterned:
        assert len(named(thumbnails, name)) == 1
    else:
        # Nothing but weights of zero, which hang on content, may bring it here.
        assert all("by content" in one.notes[0] for one in named(thumbnails, name))


def test_a_pattern_is_who_sees_whom(thumbnails):
    decided_options = [one for one in thumbnails if "by content" not in one.notes[0]]
    assert {one.family for one in decided_options} == {"local"}
    for one in decided_options:
        expected = visible(patterns.small_attention(one.name), Mask(), 1, LENGTH, LENGTH)[0]
        assert torch.equal(one.values.bool(), expected), one.name


@pytest.mark.parametrize("name", ["top_k", "sparsemax", "reformer", "block_mixture", "relu"])
def test_choices_are_marked_as_a_draw(name, thumbnails):
    (one,) = named(thumbnails, name)
    assert "by content" in one.notes[0]
    assert one.values.min() == 0 and one.values.amax(1).allclose(torch.ones(LENGTH))
    if name == "top_k":
        assert ((one.values > 0).sum(1) == patterns._SMALL).all()


@pytest.mark.parametrize("name", [*POSITION])
def test_what_acts_on_scores_is_shown_with_two_heads(name, added):
    acts = set(POSITION.card(name).acts)
    found = named(added, name)
    assert len(found) == (2 if acts & {"scores", "content"} else 0)
    for one in found:
        assert ("by content" in one.notes[1]) == ("content" in acts)
        unseen = torch.ones(LENGTH, LENGTH).triu(1).bool()
        assert torch.equal(one.values.isnan(), unseen)
        assert one.values[~unseen].any(), "a blank picture"


def test_alibi_is_as_its_paper_has_it(added):
    first, second = named(added, "alibi")
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    past = distance >= 0
    for one, slope in ((first, 1 / 4), (second, 1 / 16)):
        assert one.values[past].allclose(-slope * distance[past])
    assert first.scale == second.scale == (LENGTH - 1) / 4


@pytest.mark.parametrize("sheet", [patterns.masks, patterns.biases])
def test_sheets_are_legible_and_name_all(sheet, thumbnails, added):
    figure = sheet()
    assert_legible(figure)
    shown = " ".join(text.get_text() for text in shown_texts(figure))
    expected = thumbnails if sheet is patterns.masks else added
    assert all(one.name in shown and one.family in shown for one in expected)


def test_drawing_leaves_chance_as_it_was():
    before = torch.get_rng_state()
    patterns.small_attention("longformer")
    patterns.drawn_bias("t5_bias")
    assert torch.equal(torch.get_rng_state(), before)
