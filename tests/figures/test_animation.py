"""Test the animation: a frame for each token, and its tokens and lines."""

import pytest
import torch
from PIL import Image

from attention_zoo.tasks.views.figures.animation import animate_translation, draw_frame
from attention_zoo.tasks.views.figures.style import BLUE, RED
from tests.figures.legibility import assert_legible, visible_texts
from tests.figures.scripted_task import SOURCE, TARGET, ScriptedTask

HEADINGS = ["source", "translation"]
A, B = ["a", "b", "c"], ["x", "y"]
WEIGHTS = torch.tensor([[0.2, 0.7, 0.1], [0.0, 0.4, 0.6]])


def lines(figure, colour):
    """Return the width of each line, by source and target token."""
    coloured = [line for line in figure.axes[0].lines if line.get_color() == colour]
    widths = {tuple(line.get_ydata()): line.get_linewidth() for line in coloured}
    return {tokens: width for tokens, width in widths.items() if width}


def test_the_file_has_a_frame_for_each_token_and_one_before_and_after(tmp_path):
    path = tmp_path / "translation.gif"
    animate_translation(ScriptedTask(), "", path)
    with Image.open(path) as animation:
        assert animation.n_frames == len(TARGET) + 1 + 2  # with <eos>
        assert animation.info["loop"] == 0
        durations = []
        for frame in range(animation.n_frames):
            animation.seek(frame)
            durations.append(animation.info["duration"])
    assert min(durations) >= 500 and durations[-1] == max(durations) > 2 * durations[1]
    assert path.stat().st_size < 500_000


@pytest.mark.parametrize("length", range(4))
def test_the_translation_grows_by_a_token(length):
    texts = [text.get_text() for text in visible_texts(draw_frame(A, B, WEIGHTS, length))]
    assert texts == [*HEADINGS, *A, *B[:length]]


def test_the_newest_token_has_all_lines_and_older_ones_the_strongest():
    figure = draw_frame(A, B, WEIGHTS, 2)
    newest, older = lines(figure, RED), lines(figure, BLUE)
    assert newest.keys() == {(1, 1), (2, 1)} and older.keys() == {(1, 0)}
    assert newest[2, 1] / newest[1, 1] == pytest.approx(0.6 / 0.4)
    assert older[1, 0] / newest[2, 1] == pytest.approx(0.7 / 0.6)


@pytest.mark.parametrize(("length", "strongest"), [(0, set()), (3, {(1, 0), (2, 1)})])
def test_no_token_is_the_newest_before_the_first_and_after_the_last(length, strongest):
    figure = draw_frame(A, B, WEIGHTS, length)
    assert not lines(figure, RED)
    assert lines(figure, BLUE).keys() == strongest


def test_tokens_stay_legible():
    task = ScriptedTask(SOURCE * 5, TARGET * 5)
    record = task.attend("")
    weights = task.layers[0][0]
    assert_legible(draw_frame(record.source_tokens, record.target_tokens, weights, 20))
