"""Test the tutorial: its code runs, its pictures exist, and its notebook is the same page."""

import json
import re
import runpy
from pathlib import Path

import pytest

from attention_zoo.tasks.views.figures.gallery import LESSONS, file_name

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
NAMES = [
    file_name(number, picture)
    for number, lesson in enumerate(LESSONS, start=1)
    for picture in lesson.pictures
]
TRAINING = [
    *("model=tiny", "model.dim=16", "model.heads=2", "model.layers=1", "model.ffn_dim=32"),
    *("tokenizer=characters", "data.source.size=60", "data.source.valid=4", "test=false"),
    *("decoding.max_extra=2", "decoding.max_ratio=0.1", "callbacks=minimal", "logger=none"),
    *("trainer.max_steps=1", "trainer.val_check_interval=1"),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_code_runs_and_draws_all_pictures(train, monkeypatch, capsys) -> None:
    run = train(*TRAINING)
    assert (run / "checkpoints" / "best.ckpt").exists()
    capsys.readouterr()
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(block, names)
    assert sorted(path.name for path in Path("figures").iterdir()) == sorted(NAMES)
    (printed,) = re.findall(r"It prints `(.*?)`", PAGE)
    assert capsys.readouterr().out.startswith(f"{printed}\n")


def test_the_lessons_are_those_of_the_gallery() -> None:
    titles = re.findall(r"^## (.*)$", PAGE, flags=re.MULTILINE)
    assert titles == [f"{number}. {lesson.title}" for number, lesson in enumerate(LESSONS, start=1)]


def test_its_pictures_are_there() -> None:
    images = re.findall(r"^!\[(.+)\]\((.*)\)$", PAGE, flags=re.MULTILINE)
    alts = [picture.alt for lesson in LESSONS for picture in lesson.pictures]
    names = [f"images/tutorial/{name}" for name in NAMES]
    assert images == list(zip(alts, names, strict=True))
    for name in names:
        assert (DOCS / name).stat().st_size < 200_000, name


def test_the_notebook_is_the_page() -> None:
    text = (DOCS / "tutorial.ipynb").read_text(encoding="utf-8")
    expected = runpy.run_path(str(DOCS / "notebook.py"))["create_notebook"](PAGE)
    assert text == expected, "run: python docs/notebook.py"
    notebook = json.loads(text)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = notebook["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code == [block.strip("\n") for block in BLOCKS]
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell["id"])
        code_only = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert cell.keys() == {"cell_type", "id", "metadata", "source"} | code_only
    written = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert "```" not in written
