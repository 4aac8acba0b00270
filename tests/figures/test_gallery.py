"""Test that every picture of the gallery can be drawn, and is legible."""

import re

import pytest
from PIL import Image

from attention_zoo.tasks.views.figures.gallery import (
    LESSONS,
    draw_picture,
    example_code,
    file_name,
)
from tests.conformance.cases import mark_exhaustive
from tests.figures.legibility import assert_legible
from tests.figures.untrained_task import create_untrained_task

PICTURES = [
    (number, picture)
    for number, lesson in enumerate(LESSONS, start=1)
    for picture in lesson.pictures
]
NAMES = [file_name(number, picture) for number, picture in PICTURES]


def test_there_are_twelve_lessons_each_with_pictures() -> None:
    assert len(LESSONS) == 12
    assert {number for number, _ in PICTURES} == {*range(1, 13)}
    assert len({*NAMES}) == len(PICTURES)
    for lesson in LESSONS:
        assert 2 <= len(re.findall(r"\.(?:\s|$)", lesson.caption)) <= 4, lesson.caption
    assert all(picture.alt.endswith(".") for _, picture in PICTURES)


def test_the_alternative_texts_need_no_docstrings(monkeypatch) -> None:
    for _, picture in PICTURES:
        monkeypatch.setattr(picture.draw, "__doc__", None)  # as with python -OO
        assert picture.alt.endswith(".")


@pytest.mark.parametrize(
    "picture",
    mark_exhaustive(((x,), (x.suffix, x.needs_model)) for _, x in PICTURES),
    ids=NAMES,
)
def test_its_text_is_legible_and_nothing_is_cut(picture, tmp_path) -> None:
    task = create_untrained_task() if picture.needs_model else None
    figure = draw_picture(picture, tmp_path / "x.gif", task)
    if picture.suffix == ".png":
        assert_legible(figure)
        return
    with Image.open(tmp_path / "x.gif") as animation:
        assert animation.n_frames > 2


@pytest.mark.parametrize("name", ["dictionary", "writing", "architecture"])
def test_the_example_code_draws_the_picture(name, tmp_path, monkeypatch) -> None:
    module = "attention_zoo.tasks.views.figures.trained_task"
    monkeypatch.setattr(f"{module}.find_newest_translation", lambda: None)
    monkeypatch.setattr(f"{module}.load_translation", lambda path: create_untrained_task())
    monkeypatch.chdir(tmp_path)
    number, picture = next(pair for pair in PICTURES if pair[1].name == name)
    exec(example_code(number, picture), {})
    assert [path.name for path in tmp_path.iterdir()] == [file_name(number, picture)]
