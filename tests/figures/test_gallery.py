"""Every picture of the gallery is drawn, and can be read."""

import re

import pytest
from PIL import Image

from attention_zoo.tasks.views.figures.gallery import LESSONS, code, file_name, make
from tests.figures.canvas import assert_legible
from tests.figures.untrained import new_task

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


@pytest.mark.parametrize("picture", [picture for _, picture in PICTURES], ids=NAMES)
def test_its_text_is_legible_and_nothing_is_cut(picture, tmp_path) -> None:
    task = new_task() if picture.trained else None
    figure = make(picture, tmp_path / "x.gif", task)
    if picture.suffix == ".png":
        assert_legible(figure)
        return
    with Image.open(tmp_path / "x.gif") as animation:
        assert animation.n_frames > 2


@pytest.mark.parametrize("name", ["dictionary", "writing", "architecture"])
def test_the_code_beside_a_picture_draws_it(name, tmp_path, monkeypatch) -> None:
    trained = "attention_zoo.tasks.views.figures.trained"
    monkeypatch.setattr(f"{trained}.newest_translation", lambda: None)
    monkeypatch.setattr(f"{trained}.load_translation", lambda path: new_task())
    monkeypatch.chdir(tmp_path)
    number, picture = next(each for each in PICTURES if each[1].name == name)
    exec(code(number, picture), {})
    assert [path.name for path in tmp_path.iterdir()] == [file_name(number, picture)]
