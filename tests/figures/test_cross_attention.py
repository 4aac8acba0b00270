"""Test the heat map of a translation: words of tokens, the layer, and the marked weights."""

import pytest
import torch

from attention_zoo.decoding import Greedy
from attention_zoo.errors import UserError
from attention_zoo.tasks.views.attention_record import AttentionRecord
from attention_zoo.tasks.views.figures.animation import animate_translation
from attention_zoo.tasks.views.figures.cross_attention import (
    aggregate_by_word,
    draw_cross_attention,
    group_into_words,
    lowest_entropy_layer,
    normalise_weights,
    source_and_target_words,
)
from tests.figures.legibility import assert_legible
from tests.figures.scripted_task import PieceTokenizer, ScriptedTask
from tests.tasks.test_translation import new_task

SOURCE_WORDS = ["Wednesday", ",", "March", "4", "<eos>"]
TARGET_WORDS = ["quarta-feira", ",", "4", "de", "março", "<eos>"]


def marked_columns(axis):
    """Return the column of the frame in each row."""
    boxes = sorted((patch.get_y(), patch.get_x()) for patch in axis.patches)
    return [round(x + 0.47) for _, x in boxes]


@pytest.mark.parametrize(
    ("pieces", "texts", "word_ids"),
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
def test_tokens_belong_to_the_words_that_they_spell(pieces, texts, word_ids):
    tokenizer = PieceTokenizer(pieces)
    assert group_into_words(tokenizer, tokenizer.ids) == (
        [*texts, "<eos>"],
        [*word_ids, len(texts)],
    )


def test_weights_are_summed_over_keys_and_averaged_over_queries():
    weights = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.1, 0.4], [0.0, 1.0, 0.0]])
    by_word = aggregate_by_word(weights, [0, 0, 1], [0, 0, 1])
    assert torch.allclose(by_word, torch.tensor([[0.45, 0.55], [1.0, 0.0]]))


def test_weights_between_words_still_sum_to_one():
    task = ScriptedTask()
    source, target = source_and_target_words(task, "")
    by_word = aggregate_by_word(task.layers[0][0], target.word_ids, source.word_ids)
    assert by_word.shape == (len(TARGET_WORDS), len(SOURCE_WORDS))
    assert torch.allclose(by_word.sum(1), torch.ones(len(by_word)))


def test_the_layer_with_the_sharpest_mean_of_heads_is_chosen():
    uniform, sharp = torch.full((2, 3, 4), 0.25), torch.eye(4)[None, :3].expand(2, -1, -1)
    assert lowest_entropy_layer([uniform, sharp, uniform]) == 1
    # Sharp heads that do not agree are no alignment.
    disagreeing = torch.stack([torch.eye(4)[:3], torch.eye(4)[1:]])
    assert lowest_entropy_layer([disagreeing, sharp]) == 1


def test_the_figure_shows_the_words_and_marks_the_strongest_of_each_row():
    task = ScriptedTask()
    task.layers[1] = task.layers[1].square() / task.layers[1].square().sum(-1, keepdim=True)
    figure = draw_cross_attention(task, "")
    axis = figure.axes[0]
    source, target = source_and_target_words(task, "")
    layer = lowest_entropy_layer(task.layers)
    expected = aggregate_by_word(task.layers[layer].mean(0), target.word_ids, source.word_ids)
    assert torch.allclose(torch.tensor(axis.images[0].get_array()), expected)
    assert [label.get_text() for label in axis.get_xticklabels()] == SOURCE_WORDS
    assert [label.get_text() for label in axis.get_yticklabels()] == TARGET_WORDS
    assert marked_columns(axis) == expected.argmax(1).tolist()
    assert figure.get_suptitle() == f"Cross-attention, layer {layer} of 0–1, mean of 4 heads"
    assert_legible(figure)


def test_a_swap_of_two_words_shows_as_a_crossing():
    weights = torch.eye(3)[[1, 0, 2]][None]
    task = ScriptedTask([b"March", b" 4"], [b"4", b" mar\xc3\xa7o"], [weights])
    assert marked_columns(draw_cross_attention(task, "").axes[0]) == [1, 0, 2]


@pytest.mark.parametrize("count", [1, 12, 40])
def test_lines_of_any_length_stay_legible(count):
    pieces = [f" word{i}".encode() for i in range(count)]
    assert_legible(draw_cross_attention(ScriptedTask(pieces, pieces), ""))


def test_the_task_itself_can_be_drawn():
    task = new_task().eval()
    task.decoding = Greedy(max_ratio=1.0, max_extra=0)
    assert_legible(draw_cross_attention(task, "4 de março"))


def test_weights_that_do_not_sum_to_one_are_drawn_unchanged(tmp_path):
    weights = torch.tensor([[[2.0, -1.0], [0.0, 0.0]]])
    task = ScriptedTask([b"a"], [b"b"], [weights])
    assert torch.equal(normalise_weights(weights[0]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    image = draw_cross_attention(task, "").axes[0].images[0]
    assert torch.equal(torch.tensor(image.get_array()), weights[0])
    assert image.get_clim() == (-1, 2)
    animate_translation(task, "", tmp_path / "translation.gif")


def test_a_language_model_is_refused():
    task = ScriptedTask()
    task.attend = lambda line: AttentionRecord([], ["a"], {"decoder": [torch.ones(1, 1, 1)]})
    with pytest.raises(UserError, match="needs task=translation, got a ScriptedTask"):
        draw_cross_attention(task, "a")
