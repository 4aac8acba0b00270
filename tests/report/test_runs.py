"""Folders are found and read as they are."""

import json
from pathlib import Path

import pytest

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.analysis.report.runs import find_runs, run_names
from attention_zoo.tasks.analysis.report.summary import count_outcomes
from tests.report.folders import drop, write_job, write_run


def test_every_outcome_is_told_with_its_reason(sweep: Path) -> None:
    runs = find_runs([sweep])
    assert len(runs) == 29
    told = "29 jobs: 25 trained, 1 refused, 1 diverged, 1 failed, 1 killed"
    assert count_outcomes(runs) == told
    reasons = {run.outcome: run.reason for run in runs}
    assert reasons["killed"] == "signal 9 (SIGKILL)" and "alibi" in reasons["refused"]
    assert [run.folder.name for run in runs] == [str(number) for number in range(29)]


def test_runs_without_a_sweep_are_judged_by_their_results(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    broken = {"val/loss": None, "not_finite": {"val/loss": "nan"}}
    write_run(tmp_path / "b", figures=broken)
    drop(write_run(tmp_path / "c"), "results.json")
    write_job(tmp_path / "d", "attention=linear", outcome="waiting")
    drop(write_job(write_run(tmp_path / "e")), "results.json")
    runs = find_runs([tmp_path])
    outcomes = ["trained", "diverged", "unfinished", "unfinished", "failed"]
    assert [run.outcome for run in runs] == outcomes
    assert runs[1].reason == "val/loss is nan"
    assert runs[4].reason == "it left no results.json"


def test_a_run_is_read_once_and_holds_no_others(tmp_path: Path) -> None:
    run = write_run(tmp_path / "sweep" / "0")
    evaluation = run / "evaluations" / "later"
    evaluation.mkdir(parents=True)
    (evaluation / "results.json").write_text("{}")
    assert len(find_runs([tmp_path, run, tmp_path / "sweep"])) == 1


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="There is no run in"):
        find_runs([tmp_path])
    (write_run(tmp_path / "a") / "results.json").write_text('{"val/loss": 1')
    with pytest.raises(BadInput, match=r"results\.json is not JSON"):
        find_runs([tmp_path])


def test_runs_are_compared_by_all_but_seed_and_place(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 2))]
    one, two = find_runs(paths)
    assert one.options == two.options
    assert one.options["optimizer.lr"] == 0.004 and one.options["data.source.seed"] == 0
    assert (one.seed, two.seed) == (1, 2)
    other = find_runs([write_run(tmp_path / "c", lr=0.01)])[0]
    assert other.options != one.options


def test_outputs_are_split_at_line_feeds_only(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    line = {"source": "a\u2028b", "reference": "c", "output": "d\x85e"}
    (run / "test_outputs.jsonl").write_text(json.dumps(line, ensure_ascii=False) + "\n")
    assert find_runs([run])[0].outputs() == [line]
    drop(run, "test_outputs.jsonl")
    assert find_runs([run])[0].outputs() is None


def test_jobs_are_named_by_what_not_all_were_given(tmp_path: Path) -> None:
    for number, name in enumerate(("linear", "gated")):
        write_job(tmp_path / str(number), f"attention={name}", "model=tiny", outcome="failed")
    write_run(tmp_path / "2", seed=3)
    runs = find_runs([tmp_path])
    names = ["attention=linear", "attention=gated", "attention=multi_head position=rotary seed=3"]
    assert run_names(runs) == names


def test_hidden_folders_hold_no_runs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "sweep" / "0")
    ffn_dim = tmp_path / "sweep" / ".hydra"
    ffn_dim.mkdir()
    (ffn_dim / "config.yaml").write_text("seed: 1\n")
    assert [each.folder for each in find_runs([tmp_path])] == [run]
