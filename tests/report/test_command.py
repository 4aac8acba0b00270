"""`attention-zoo report`: what it prints, writes and refuses."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

import attention_zoo
from attention_zoo.errors import UserError
from attention_zoo.tasks.commands.report import run
from tests.report.folders import write_job, write_run

NAMES = ("report.html", "report.md", "results.csv")


@pytest.fixture
def report(monkeypatch, capsys) -> Callable[..., str]:
    def call(*arguments: object) -> str:
        monkeypatch.setenv("COLUMNS", "100")
        run([str(each) for each in arguments])
        return capsys.readouterr().out

    return call


class Parsed(HTMLParser):
    """What a page has in it, as a browser would read it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.titles: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags and self.tags[-1][0] == "title":
            self.titles.append(data)


def test_the_printed_table_is_legible_at_100_columns(report, sweep: Path, tmp_path: Path) -> None:
    output = report(sweep, f"output={tmp_path}")
    assert max(len(line.rstrip()) for line in output.splitlines() if "/" not in line) <= 100
    first = next(line for line in output.splitlines() if "gated rotary  " in line)
    assert "reference" in first and "±" in first
    assert re.search(r"latent rotary .* \(n\.s\., p = [01]\.\d{3}\)", output)
    # How p values are corrected is said on the terminal, too.
    assert "all 36 pairs of rows" in re.sub(r"\s+", " ", output)
    assert "29 jobs: 25 trained, 1 refused, 1 diverged, 1 failed, 1 killed." in output
    assert "signal 9 (SIGKILL)" in output and "cannot take position=alibi" in output
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)


def test_files_go_to_the_first_folder(report, tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", attention="linear")
    report(one, two)
    assert {path.name for path in one.iterdir()} >= {*NAMES}
    assert not {path.name for path in two.iterdir()} & {*NAMES}


def test_all_jobs_are_listed_as_they_are(report, sweep: Path, tmp_path: Path) -> None:
    report(sweep, f"output={tmp_path}")
    text = Parsed((tmp_path / "report.html").read_text()).text
    for reason in ("signal 9 (SIGKILL)", "val/loss is nan", "no space left", "position=alibi"):
        assert reason in text and reason in (tmp_path / "report.md").read_text()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert len(rows) == 29
    outcomes = [row["outcome"] for row in rows]
    assert [outcomes.count(x) for x in ("trained", "refused", "diverged", "failed", "killed")] == [
        *(25, 1, 1, 1, 1)
    ]
    trained = rows[0]
    assert float(trained["test/bleu"]) > 0 and trained["hardware/threads"] == "2"
    assert trained["config/choices.attention"] == "multi_head" and trained["seed"] == "1"
    assert next(x for x in rows if x["outcome"] == "diverged")["val/loss"] == "nan"
    assert not {"history", "lengths"} & {*trained}


def test_the_page_needs_nothing_beside_it(report, sweep: Path, tmp_path: Path) -> None:
    report(sweep, f"output={tmp_path}")
    page = Parsed((tmp_path / "report.html").read_text())
    assert "by attention-zoo report." in page.text
    for tag, attributes in page.tags:
        assert tag not in ("img", "iframe", "object", "embed"), tag
        for name in ("src", "href", "srcset", "action"):
            assert attributes.get(name, "data:,") == "data:,", (tag, attributes)
    assert "http" not in page.text and "@import" not in page.text


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "внимание", "a|b`c", "[bold]&amp;"])
def test_odd_names_are_shown_as_they_are(report, tmp_path: Path, name: str) -> None:
    write_run(tmp_path / "sweep" / "0", attention=name)
    write_run(tmp_path / "sweep" / "1")
    write_job(tmp_path / "sweep" / "2", f"attention={name}", outcome="refused", reason=name)
    output = report(tmp_path / "sweep")
    label = name.replace("`", "'")
    assert label in output
    page = Parsed((tmp_path / "sweep" / "report.html").read_text())
    assert label in page.text
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert page.titles.count(label) > 1, "in charts"
    text = (tmp_path / "sweep" / "report.md").read_text()
    assert "<script" not in text
    widths = {
        len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if "refused |" in line
    }
    assert widths == {4}


def test_what_older_results_lack_is_left_open(report, tmp_path: Path) -> None:
    old = {"val/loss": 2.5, "test/loss": 2.6, "parameters": 1000, "seconds": 3.0, "seed": 1}
    for number, name in enumerate(("linear", "multi_head", "rotary")):
        folder = write_run(tmp_path / str(number), attention=name)
        (folder / "results.json").write_text(json.dumps(old if number else {"seed": 1, "x": {}}))
        (folder / "test_outputs.jsonl").unlink()
    output = report(tmp_path)
    assert re.search(r"linear +1 +– +no value +– *\n", output)
    assert "not recorded in 3 of 3 runs" in Parsed((tmp_path / "report.html").read_text()).text


def test_nothing_but_failures_is_a_report_too(report, tmp_path: Path) -> None:
    write_job(tmp_path / "0", "attention=linear", outcome="failed", reason="no such file", code=2)
    assert "1 job: 1 failed." in report(tmp_path)


def test_lengths_are_drawn(report, tmp_path: Path) -> None:
    for number, name in enumerate(("alibi", "rotary")):
        scored = {"trained_at": 64, "split": "test", "scored": [64, 128], "refused": {}}
        scored["loss_by_position"] = {"64": [], "128": []}
        figures = {"lengths": scored, "test/perplexity@64": 30.0, "test/perplexity@128": 31.5}
        write_run(tmp_path / str(number), position=name, figures=figures)
    report(tmp_path)
    page = Parsed((tmp_path / "report.html").read_text())
    assert "Perplexity by length" in page.text and "trained at 64" in page.text
    cells = re.sub(r"\s+", " ", page.text)
    assert "position at 64 at 128" in cells and "alibi 30.000 31.500" in cells


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["logger=csv", "."], "logger must be one of wandb, none, got 'csv'"),
        (["logger=wandb"], "report needs at least one FOLDER"),
        (["nowhere"], "nowhere is no folder"),
    ],
)
def test_what_cannot_be_done_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(arguments)


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file cannot be written to .* output=FOLDER"):
        run([str(write_run(tmp_path / "0")), f"output={tmp_path / 'file'}"])


def test_it_starts_without_what_is_heavy(tmp_path: Path) -> None:
    """Even if it runs tests of BLEU."""
    for number, name in enumerate(("linear", "multi_head")):
        write_run(tmp_path / str(number), attention=name)
    program = (
        "import json, sys\nfrom attention_zoo.tasks.commands.cli import main\nmain()\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "report", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(attention_zoo.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = set(json.loads(done.stdout.splitlines()[-1]))
    assert "sacrebleu.metrics.bleu" in imported
    assert not imported & {
        "torch",
        "lightning",
        "hydra",
        "wandb",
        "torchmetrics",
        "mpmath",
        "scipy",
    }


@pytest.mark.slow
def test_the_report_goes_to_wandb(report, sweep: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    report(sweep, f"output={tmp_path}", "logger=wandb")
    (folder,) = (tmp_path / "report" / "wandb").glob("offline-run-*")
    shown = [path.name for path in (folder / "files" / "media" / "html").rglob("*.html")]
    assert {name.split("_")[0] for name in shown} == {"report", "seeds", "loss", "cost"}
    assert list((folder / "files" / "media" / "table").rglob("*.json"))
    (data,) = folder.glob("run-*.wandb")
    raw = data.read_bytes()
    assert b"gated rotary" in raw and b"best/test/bleu" in raw
