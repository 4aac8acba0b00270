"""Results are read back as they were, and told so that they can be read and copied."""

import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from attention_zoo.tasks.training.results import (
    _git_commit,
    collect_manifest,
    print_config_tree,
    print_results,
    write_outputs,
    write_results,
)

METRICS = {"val/loss": 1.23456, "test/bleu": 33.25, "test/perplexity": 5123.4}


@pytest.fixture(scope="module")
def manifest():
    return collect_manifest(
        parameters={"parameters": 3_312_345, "parameters/attention": 1_000_000},
        training_flops_per_token=20_000_000.5,
        decode_state_bytes=None,
        tokens_seen=12_345_678,
        tokens_per_second=43_000.1234,
        seconds=287.4004,
        looking_seconds=4.1,
        peak_memory_bytes=2**30,
        seed=1,
        data_hash="ab" * 32,
        data_order="cd" * 32,
        precision="bf16-mixed",
        history={"train/loss": [[20, 4096, 5.5], [40, 8192, None]], "val/loss": []},
    )


def printed(function, *arguments, width=80) -> list[str]:
    out = io.StringIO()
    function(Console(file=out, width=width), *arguments)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_the_file_holds_metrics_by_name_and_how_they_were_obtained(tmp_path, manifest):
    write_results(tmp_path / "results.json", METRICS, manifest)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results == METRICS | manifest
    assert results["parameters"] == 3_312_345 and results["parameters/attention"] == 1_000_000
    assert results["decode_state_bytes"] is None
    assert "matched" not in results
    assert results["seconds"] == 287.4
    assert results["versions"]["python"] == "{}.{}.{}".format(*sys.version_info)
    assert results["versions"]["torch"] == torch.__version__
    assert results["hardware"]["threads"] == torch.get_num_threads()
    assert results["hardware"]["cpu"]


@pytest.mark.parametrize("number", [torch.tensor(2.5), np.float64(2.5), 2.5])
def test_tensors_and_numpy_scalars_are_numbers(tmp_path, number):
    write_results(tmp_path / "results.json", {"val/loss": number}, {})
    assert (tmp_path / "results.json").read_text() == '{\n  "val/loss": 2.5\n}\n'


def test_what_json_cannot_say_is_null_with_a_note(tmp_path):
    metrics = {"val/loss": torch.tensor(math.nan), "test/perplexity": math.inf, "test/bleu": 0.0}
    write_results(tmp_path / "results.json", metrics, {})
    assert json.loads((tmp_path / "results.json").read_text()) == {
        "val/loss": None,
        "test/perplexity": None,
        "test/bleu": 0.0,
        "not_finite": {"val/loss": "nan", "test/perplexity": "inf"},
    }


def test_outputs_stand_in_the_order_of_the_split(tmp_path):
    lines = [("a", "b"), ("c\u2028", "ç"), ("d", 'e"')]
    write_outputs(tmp_path / "test_outputs.jsonl", lines, {2: "f\nf", 1: "ç"})
    written = (tmp_path / "test_outputs.jsonl").read_text().split("\n")
    assert written[-1] == ""
    assert [json.loads(line) for line in written[:-1]] == [
        {"source": "c\u2028", "reference": "ç", "output": "ç"},
        {"source": "d", "reference": 'e"', "output": "f\nf"},
    ]


def test_a_shared_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="seed"):
        write_results(tmp_path / "results.json", {"seed": 1.0}, {"seed": 3})


def test_the_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_results(path, {"test/bleu": 1.0}, {})

    def break_off(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", break_off)
        write_results(path, {"test/bleu": 2.0}, {})
    assert json.loads(path.read_text()) == {"test/bleu": 1.0}
    write_results(path, {"test/bleu": 3.0}, {})
    assert json.loads(path.read_text()) == {"test/bleu": 3.0}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_the_commit_is_that_of_the_code(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    code, untracked = tmp_path / "code.py", tmp_path / "site-packages.py"
    code.write_text("a = 1\n")
    untracked.write_text("")
    assert _git_commit(code) is None
    git("init")
    git("add", "code.py")
    git("commit", "-m", "a")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD")
    assert _git_commit(code) == commit
    code.write_text("a = 2\n")
    assert _git_commit(code) == f"{commit}-dirty"
    assert _git_commit(untracked) is None
    monkeypatch.setenv("PATH", "")
    assert _git_commit(code) is None


def test_the_end_of_a_run_can_be_read_and_copied(manifest):
    checkpoint = Path("logs/translation/runs/2026-11-23_00-13-32/checkpoints") / ("x" * 60)
    command = f"attention-zoo translate ckpt_path={checkpoint} 'Wednesday, [bold]March[/] 4, 2026'"
    paths = {"folder": "logs", "checkpoint": checkpoint}
    lines = printed(print_results, METRICS, manifest, paths, [command, "attention-zoo list"])
    assert "val/loss          1.2346" in lines
    assert "test/perplexity 5,123.40" in lines
    assert "3,312,345 parameters, 12,345,678 tokens seen, 4 min 47 s, seed 1, bf16-mixed" in lines
    assert "folder      logs" in lines
    assert f"checkpoint  {checkpoint}" in lines
    assert lines[-2:] == [f"  {command}", "  attention-zoo list"]
    assert all(character.isprintable() for line in lines for character in line)


def test_a_run_without_figures_still_ends_well(manifest):
    lines = printed(print_results, {"val/loss": math.nan}, manifest, {}, [])
    assert any("val/loss" in line and "nan" in line for line in lines)
    assert "Next, try" not in lines


def test_the_config_tree_names_choices_and_fits_80_columns():
    config = {
        "seed": 1,
        "ckpt_path": None,
        "attention": {"name": "linear", "_target_": "a.Linear", "_partial_": True, "heads": 8},
        "data": {
            "_target_": "a.TranslationData",
            "probes": ["Wednesday, March 4, 2026", "one"],
            "source": {"_target_": "a.Phrases", "root": "/data/" + "folder/" * 20},
        },
        "logger": {"csv": {"_target_": "x.CSVLogger", "name": "csv"}},
        "trainer": {"deterministic": False},
    }
    lines = printed(print_config_tree, config)
    assert lines[:6] == [
        "config",
        "├── seed=1 ckpt_path=null",
        "├── attention linear",
        "│   └── heads=8",
        "├── data TranslationData",
        "│   ├── probes=['Wednesday, March 4, 2026',one]",
    ]
    assert lines[-2:] == ["└── trainer", "    └── deterministic=false"]
    assert max(map(len, lines)) <= 80
    assert all(character.isprintable() for line in lines for character in line)
