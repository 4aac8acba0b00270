"""Files of users, from training to evaluation, in this process."""

import json
import sys

import pytest

from attention_zoo.tasks.commands.cli import main
from tests.cli.conftest import SMALL

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
STEPS = ["trainer.max_steps=2", "callbacks=minimal", "logger=csv", "hydra.run.dir=run"]


@pytest.fixture
def program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path / "cache"))

    def start(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["attention-zoo", *arguments])
        with pytest.raises(SystemExit) as exit:
            main()
            raise SystemExit(0)
        assert exit.value.code in (0, None)

    return start


@pytest.mark.slow
def test_one_file_trains_and_other_files_test(program, tmp_path, capsys):
    lines = [f"{a} {b}\t{b.upper()} {a.upper()}\n" for a in WORDS for b in WORDS]
    (tmp_path / "my.tsv").write_text("".join(lines))
    program(
        "train", "data=parallel_files", "data.source.train=my.tsv", *SMALL, *STEPS,
        "decoding.max_extra=2",
    )  # fmt: skip
    assert "5% of train are cut off" in capsys.readouterr().out
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["test/loss"] > 0
    (tmp_path / "my.tsv").unlink()  # an evaluation needs no file of train
    (tmp_path / "new.tsv").write_text("one two\tTWO ONE\n")
    checkpoint = "ckpt_path=run/checkpoints/last.ckpt"
    program("evaluate", checkpoint, "data.source.test=new.tsv", "output=scores")
    assert json.loads((tmp_path / "scores/results.json").read_text())["test/loss"] > 0


@pytest.mark.slow
def test_a_text_trains_and_another_tests(program, tmp_path):
    (tmp_path / "my.txt").write_bytes("".join(f"{word}\r\n" for word in WORDS * 90).encode())
    sizes = ["data.batch_size=4", "data.context_length=16"]
    program(
        "train", "task=language_modeling", "data=text_files", "data.source.train=my.txt", *SMALL,
        *sizes, *STEPS,
    )  # fmt: skip
    (tmp_path / "my.txt").unlink()
    (tmp_path / "new.jsonl").write_text('{"text": "one two three"}\n{"text": "four five"}\n')
    program(
        "evaluate", "ckpt_path=run/checkpoints/last.ckpt", "data.source.test=new.jsonl",
        "data.source.column=text", "output=scores",
    )  # fmt: skip
    assert json.loads((tmp_path / "scores/results.json").read_text())["test/loss"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data=parallel_files"], "data.source.train is missing; give it: .*[[a.en,a.pt]]"),
        (["data=parallel_files", "data.source.train=a.en"], "a.en is no file with both sides"),
        (["data=gettext", "data.source.target=xx"], "no catalogue of xx"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_form(refuses, tmp_path, options, message):
    (tmp_path / "a.en").write_text("one\n")
    line = refuses("train", *options, folder=tmp_path)
    assert all(part in line for part in message.split(".*"))


def test_text_files_are_refused_with_the_form(refuses, tmp_path):
    line = refuses("train", "task=language_modeling", "data=text_files", folder=tmp_path)
    assert "give it: data.source.train=a.txt or" in line
