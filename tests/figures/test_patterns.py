"""Test the thumbnails of masks and biases: all are there, and have the right values."""

from dataclasses import fields

import pytest
import torch

from attention_zoo import create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.attention.local.compressed import CompressedAttention
from attention_zoo.masks import Mask
from attention_zoo.tasks.views.figures import patterns
from attention_zoo.zoo import ATTENTION, POSITION
from tests.conformance.cases import small_options
from tests.conformance.definition import visible
from tests.figures.legibility import assert_legible, visible_texts

LENGTH = patterns._LENGTH


@pytest.fixture(scope="module")
def thumbnails():
    return patterns.pattern_thumbnails()


@pytest.fixture(scope="module")
def biases():
    return patterns.bias_thumbnails()


def select(thumbnails, name):
    return [thumbnail for thumbnail in thumbnails if thumbnail.name == name]


def test_every_field_of_a_mask_is_shown():
    texts = {text for one in patterns.mask_thumbnails() for text in (one.name, *one.notes)}
    for field in fields(Mask):
        assert {field.name, f"+ {field.name}"} & texts, field.name


@pytest.mark.parametrize("name", [*ATTENTION])
def test_mechanisms_with_a_window_a_pattern_or_a_choice_are_there(name, thumbnails):
    card = ATTENTION.card(name)
    attention = create_attention(name, dim=16, role=card.roles[0], **small_options(name))
    patterned = (
        attention.window or type(attention).is_visible is not Attention.is_visible or card.chooses
    )
    if patterned:
        assert len(select(thumbnails, name)) == 1
    else:
        # Only weights of zero that depend on content can be the reason.
        assert all("by content" in one.notes[0] for one in select(thumbnails, name))


def test_a_pattern_is_the_mask_of_its_mechanism(thumbnails):
    fixed = [one for one in thumbnails if "by content" not in one.notes[0]]
    assert {one.family for one in fixed} == {"local"}
    for one in fixed:
        attention = patterns.create_small_attention(one.name)
        # Of compressed attention, the first map is over tokens themselves.
        window = attention.sliding_window if isinstance(attention, CompressedAttention) else None
        expected = visible(attention, Mask(window=window), 1, LENGTH, LENGTH)[0]
        assert torch.equal(one.values.bool(), expected), one.name


@pytest.mark.parametrize("name", ["top_k", "sparsemax", "reformer", "block_mixture", "relu"])
def test_choices_are_marked_as_an_example(name, thumbnails):
    (one,) = select(thumbnails, name)
    assert "by content" in one.notes[0]
    assert one.values.min() == 0 and one.values.amax(1).allclose(torch.ones(LENGTH))
    if name == "top_k":
        assert ((one.values > 0).sum(1) == patterns._MAX_OPTION).all()


@pytest.mark.parametrize("name", [*POSITION])
def test_encodings_of_scores_are_there_with_two_heads(name, biases):
    acts = set(POSITION.card(name).acts)
    heads = select(biases, name)
    assert len(heads) == (2 if acts & {"scores", "content"} else 0)
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    for head, one in enumerate(heads, start=1):
        assert ("by content" in one.notes[1]) == ("content" in acts)
        # Heads of hard ALiBi show their windows by what they hide; the rest of the bias is zero.
        window = head if name == "hard_alibi" else LENGTH
        shown = (distance >= 0) & (distance < window)
        assert torch.equal(one.values.isnan(), ~shown)
        assert name == "hard_alibi" or one.values[shown].any(), "a blank picture"


def test_alibi_has_the_slopes_of_its_paper(biases):
    first, second = select(biases, "alibi")
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    past = distance >= 0
    for one, slope in ((first, 1 / 4), (second, 1 / 16)):
        assert one.values[past].allclose(-slope * distance[past])
    assert first.limit == second.limit == (LENGTH - 1) / 4


@pytest.mark.slow
@pytest.mark.parametrize("draw", [patterns.draw_masks, patterns.draw_biases])
def test_pictures_are_legible_and_name_all(draw, thumbnails, biases):
    figure = draw()
    assert_legible(figure)
    texts = " ".join(text.get_text() for text in visible_texts(figure))
    expected = thumbnails if draw is patterns.draw_masks else biases
    assert all(one.name in texts and one.family in texts for one in expected)


def test_the_random_state_does_not_change():
    before = torch.get_rng_state()
    patterns.create_small_attention("longformer")
    patterns.sample_bias("t5_bias")
    assert torch.equal(torch.get_rng_state(), before)
