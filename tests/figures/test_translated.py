"""The heat map of a translation: tokens joined to words, the clearest layer, what is marked."""

import pytest
import torch

from attention_zoo.decoding import Greedy
from attention_zoo.errors import UserError
from attention_zoo.tasks.views.attention_record import AttentionRecord
from attention_zoo.tasks.views.figures.animation import write_translation
from attention_zoo.tasks.views.figures.translated import (
    between_words,
    clearest_layer,
    cross_attention,
    shares,
    words,
    words_read_and_written,
)
from tests.figures.canvas import assert_legible
from tests.figures.scripted import Pieces, Scripted
from tests.tasks.test_translation import new_task

SOURCE_WORDS = ["Wednesday", ",", "March", "4", "<eos>"]
TARGET_WORDS = ["quarta-feira", ",", "4", "de", "março", "<eos>"]


def marked(axis):
    """The columns that are framed, by row."""
    boxes = sorted((patch.get_y(), patch.get_x()) for patch in axis.patches)
    return [round(x + 0.47) for _, x in boxes]


@pytest.mark.parametrize(
    ("pieces", "names", "of_token"),
    [
        ([b"Mar", b"ch", b" ", b"4"], ["March", "4"], [0, 0, 1, 1]),
        ([b"quarta", b"-", b"feira", b","], ["quarta-feira", ","], [0, 0, 0, 1]),
        ([b"12", b":", b"30"], ["12:30"], [0, 0, 0]),
        ([b" de", b" 2026"], ["de", "2026"], [0, 1]),
        ([b"mar\xc3", b"\xa7", b"o"], ["março"], [0, 0, 0]),
        ([b"S\xc3", b"\xa3", b" a"], ["Sã", "a"], [0, 0, 1]),
        ([b"a", b" ", b" "], ["a", "  "], [0, 1, 1]),
        ([], [], []),
    ],
)
def test_tokens_belong_to_the_words_that_they_spell(pieces, names, of_token):
    tokenizer = Pieces(pieces)
    assert words(tokenizer, tokenizer.ids) == ([*names, "<eos>"], [*of_token, len(names)])


def test_a_word_gets_the_sum_over_its_tokens_and_gives_the_mean_over_them():
    weights = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.1, 0.4], [0.0, 1.0, 0.0]])
    joined = between_words(weights, [0, 0, 1], [0, 0, 1])
    assert torch.allclose(joined, torch.tensor([[0.45, 0.55], [1.0, 0.0]]))


def test_weights_between_words_still_add_up_to_one():
    task = Scripted()
    source, target = words_read_and_written(task, "")
    joined = between_words(task.layers[0][0], target.of_token, source.of_token)
    assert joined.shape == (len(TARGET_WORDS), len(SOURCE_WORDS))
    assert torch.allclose(joined.sum(1), torch.ones(len(joined)))


def test_the_clearest_layer_spreads_its_weights_least():
    spread, sharp = torch.full((2, 3, 4), 0.25), torch.eye(4)[None, :3].expand(2, -1, -1)
    assert clearest_layer([spread, sharp, spread]) == 1
    # Heads that are sharp each by itself, and do not agree, are no alignment.
    split = torch.stack([torch.eye(4)[:3], torch.eye(4)[1:]])
    assert clearest_layer([split, sharp]) == 1


def test_the_figure_shows_the_words_and_marks_the_strongest_of_each_row():
    task = Scripted()
    task.layers[1] = task.layers[1].square() / task.layers[1].square().sum(-1, keepdim=True)
    figure = cross_attention(task, "")
    axis = figure.axes[0]
    source, target = words_read_and_written(task, "")
    layer = clearest_layer(task.layers)
    expected = between_words(task.layers[layer].mean(0), target.of_token, source.of_token)
    assert torch.allclose(torch.tensor(axis.images[0].get_array()), expected)
    assert [label.get_text() for label in axis.get_xticklabels()] == SOURCE_WORDS
    assert [label.get_text() for label in axis.get_yticklabels()] == TARGET_WORDS
    assert marked(axis) == expected.argmax(1).tolist()
    assert figure.get_suptitle() == f"Cross-attention, layer {layer + 1} of 2, mean of 4 heads"
    assert_legible(figure)


def test_a_swap_of_two_words_shows_as_a_crossing():
    weights = torch.eye(3)[[1, 0, 2]][None]
    task = Scripted([b"March", b" 4"], [b"4", b" mar\xc3\xa7o"], [weights])
    assert marked(cross_attention(task, "").axes[0]) == [1, 0, 2]


@pytest.mark.parametrize("count", [1, 12, 40])
def test_lines_of_any_length_stay_legible(count):
    pieces = [f" word{i}".encode() for i in range(count)]
    assert_legible(cross_attention(Scripted(pieces, pieces), ""))


def test_the_task_itself_can_be_drawn():
    task = new_task().eval()
    task.decoding = Greedy(max_ratio=1.0, max_extra=0)
    assert_legible(cross_attention(task, "4 de março"))


def test_weights_that_are_no_distribution_are_drawn_as_they_are(tmp_path):
    weights = torch.tensor([[[2.0, -1.0], [0.0, 0.0]]])
    task = Scripted([b"a"], [b"b"], [weights])
    assert torch.equal(shares(weights[0]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    image = cross_attention(task, "").axes[0].images[0]
    assert torch.equal(torch.tensor(image.get_array()), weights[0])
    assert image.get_clim() == (-1, 2)
    write_translation(task, "", tmp_path / "translation.gif")


def test_a_language_model_is_refused():
    task = Scripted()
    task.attend = lambda line: AttentionRecord([], ["a"], {"decoder": [torch.ones(1, 1, 1)]})
    with pytest.raises(UserError, match="needs task=translation, got a Scripted"):
        cross_attention(task, "a")
