"""`attention-zoo figures`, and the page that it writes."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from attention_zoo.errors import UserError
from attention_zoo.tasks.commands.figures import run
from attention_zoo.tasks.views.figures import gallery
from attention_zoo.tasks.views.figures.gallery import LESSONS, file_name
from tests.browser import assert_quiet, in_browser, look, texts

PICTURES = {
    file_name(number, picture): picture
    for number, lesson in enumerate(LESSONS, start=1)
    for picture in lesson.pictures
}
TRAINED = {name for name, picture in PICTURES.items() if picture.needs_model}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the page, and the same picture under every name."""
    folder = tmp_path_factory.mktemp("figures")
    first, *others = PICTURES
    gallery.save_picture(PICTURES[first], folder / first)
    for name in others:
        shutil.copy(folder / first, folder / name)
    (folder / "index.html").write_text(gallery.index_page("The trained model is x.ckpt.", {}))
    return folder


def test_without_a_trained_model_the_other_pictures_are_drawn(
    tmp_path, monkeypatch, capsys
) -> None:
    names = []
    monkeypatch.setattr(
        gallery, "save_picture", lambda picture, path, task: names.append(path.name)
    )
    monkeypatch.chdir(tmp_path)
    run([])
    assert {*names} == PICTURES.keys() - TRAINED
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("No trained model is drawn: there is no trained translation under")
    assert lines[0].endswith("yet; train one with make demo or attention-zoo train.")
    assert lines[-1] == "figures/index.html"
    assert len(lines) == len(PICTURES) + 2
    missing = [line for line in lines if " is not drawn: " in line]
    assert {line.split()[0] for line in missing} == {f"figures/{name}" for name in TRAINED}
    assert all(line.endswith("or name one: ckpt_path=FILE.") for line in missing)
    text = (tmp_path / "figures" / "index.html").read_text()
    assert text.count("Not drawn: it needs a trained translation") == len(TRAINED)
    assert "train one with make demo or attention-zoo train." in text
    assert {*re.findall(r'src="(.*?)"', text)} == PICTURES.keys() - TRAINED


def test_the_reason_why_a_picture_is_missing_is_printed(tmp_path, monkeypatch, capsys) -> None:
    def save_picture(picture, path, task):
        if picture.name == "two-heads":
            raise UserError("no layer has two.")

    monkeypatch.setattr(gallery, "save_picture", save_picture)
    monkeypatch.setattr(
        "attention_zoo.tasks.views.figures.trained_task.load_translation", lambda path: "task"
    )
    run(["ckpt_path=x.ckpt", f"output={tmp_path}"])
    out = capsys.readouterr().out
    assert out.startswith("The trained model is x.ckpt.\n")
    assert f"{tmp_path}/08-two-heads.png is not drawn: no layer has two.\n" in out
    text = (tmp_path / "index.html").read_text()
    assert "Not drawn: no layer has two." in text and text.count("Not drawn") == 1
    assert "The trained model is x.ckpt." in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint=x"], "no option 'checkpoint'.*Choices: ckpt_path, output"),
        (["figures"], "figures takes options of the form name=value, got 'figures'"),
        (["ckpt_path="], "ckpt_path takes one value"),
        (["output=a", "output=b"], "output takes one value, output=…; got output=a output=b"),
        (["ckpt_path=nowhere.ckpt"], "There is no checkpoint nowhere.ckpt"),
        (["output=taken"], "taken cannot be written to .*output=FOLDER"),
        (
            ["ckpt_path=text.ckpt"],
            "task=language_modeling, but the pictures need a translation",
        ),
    ],
)
def test_unusable_options_are_refused(arguments, message, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    config = {"version": "0.2.0", "config": {"task": {"name": "language_modeling"}}}
    torch.save({"attention_zoo": config}, tmp_path / "text.ckpt")
    with pytest.raises(UserError, match=message):
        run(arguments)
    assert not (tmp_path / "figures").exists()


class TestPage:
    """In a browser, as its readers have it."""

    pytestmark = in_browser

    def test_all_pictures_are_there_and_nothing_else_is_asked(self, browser: Any, folder) -> None:
        address = (folder / "index.html").as_uri()
        look(browser, address)
        script = "return [...document.images].map((x) => [x.complete, x.naturalWidth, x.alt])"
        images = browser.execute_script(script)
        assert len(images) == len(PICTURES)
        assert all(complete and width > 0 and alt for complete, width, alt in images)
        assert_quiet(browser, address, beside={(folder / name).as_uri() for name in PICTURES})

    def test_each_lesson_has_number_caption_and_code(self, browser: Any, folder) -> None:
        look(browser, (folder / "index.html").as_uri())
        titles = [f"{number}. {lesson.title}" for number, lesson in enumerate(LESSONS, start=1)]
        assert texts(browser, "h2") == titles
        assert texts(browser, "h2 + p") == [lesson.caption for lesson in LESSONS]
        assert len(texts(browser, "pre")) == len(PICTURES)
        assert texts(browser, "nav a") == [lesson.title for lesson in LESSONS]

    def test_the_list_says_what_is_being_read(self, browser: Any, folder) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        look(browser, (folder / "index.html").as_uri())
        browser.execute_script("document.querySelectorAll('nav a')[4].click()")
        current = (
            "return [...document.querySelectorAll('nav a')]"
            ".findIndex((x) => x.ariaCurrent === 'true')"
        )
        WebDriverWait(browser, 20).until(lambda it: it.execute_script(current) == 4)

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_a_phone_scrolls_pictures_and_not_the_page(self, browser, folder, scheme) -> None:
        look(browser, (folder / "index.html").as_uri(), width=390, scheme=scheme)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        widths = "return [...document.images].map((x) => x.clientWidth)"
        assert min(browser.execute_script(widths)) >= 760, "small text would not be legible"
