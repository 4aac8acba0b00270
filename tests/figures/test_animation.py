"""A translation as it is written: a picture for each token, and what is on it."""

import pytest
import torch
from PIL import Image

from attention_zoo.tasks.views.figures.animation import picture, write_translation
from attention_zoo.tasks.views.figures.style import BLUE, RED
from tests.figures.canvas import assert_legible, shown_texts
from tests.figures.scripted import SOURCE, TARGET, Scripted

HEADINGS = ["source", "translation"]
A, B = ["a", "b", "c"], ["x", "y"]
WEIGHTS = torch.tensor([[0.2, 0.7, 0.1], [0.0, 0.4, 0.6]])


def lines(figure, colour):
    """From which source token to which target token, and how wide."""
    found = [line for line in figure.axes[0].lines if line.get_color() == colour]
    return {tuple(line.get_ydata()): line.get_linewidth() for line in found if line.get_linewidth()}


def test_the_file_has_a_picture_for_each_token_and_one_before_and_after(tmp_path):
    path = tmp_path / "translation.gif"
    write_translation(Scripted(), "", path)
    with Image.open(path) as animation:
        assert animation.n_frames == len(TARGET) + 1 + 2  # with <eos>
        assert animation.info["loop"] == 0
        stays = []
        for frame in range(animation.n_frames):
            animation.seek(frame)
            stays.append(animation.info["duration"])
    assert min(stays) >= 500 and stays[-1] == max(stays) > 2 * stays[1]
    assert path.stat().st_size < 500_000


@pytest.mark.parametrize("written", range(4))
def test_the_translation_grows_by_a_token(written):
    texts = [text.get_text() for text in shown_texts(picture(A, B, WEIGHTS, written))]
    assert texts == [*HEADINGS, *A, *B[:written]]


def test_the_token_that_is_written_looks_at_all_and_those_before_at_their_strongest():
    figure = picture(A, B, WEIGHTS, 2)
    now, before = lines(figure, RED), lines(figure, BLUE)
    assert now.keys() == {(1, 1), (2, 1)} and before.keys() == {(1, 0)}
    assert now[2, 1] / now[1, 1] == pytest.approx(0.6 / 0.4)
    assert before[1, 0] / now[2, 1] == pytest.approx(0.7 / 0.6)


@pytest.mark.parametrize(("written", "strongest"), [(0, set()), (3, {(1, 0), (2, 1)})])
def test_nothing_looks_before_the_first_token_and_after_the_last(written, strongest):
    figure = picture(A, B, WEIGHTS, written)
    assert not lines(figure, RED)
    assert lines(figure, BLUE).keys() == strongest


def test_tokens_stay_legible():
    task = Scripted(SOURCE * 5, TARGET * 5)
    reading = task.attend("")
    weights = task.layers[0][0]
    assert_legible(picture(reading.source_tokens, reading.target_tokens, weights, 20))
