"""Files of a run are read back as they were written."""

import json
import math

import numpy as np
import pytest
import torch

from attention_zoo.errors import BadInput
from attention_zoo.tasks.run_folder import JobRecord, RunFolder

METRICS = {"val/loss": 1.23456, "test/bleu": 33.25, "test/perplexity": 5123.4}
MANIFEST = {
    "parameters": 3_312_345,
    "parameters/attention": 1_000_000,
    "training_flops_per_token": 20_000_000.5,
    "decode_state_bytes": None,
    "seconds": 287.4,
    "versions": {"python": "3.11.7"},
    "history": {"train/loss": [[20, 4096, 5.5], [40, 8192, None]], "val/loss": []},
}


def test_the_file_holds_metrics_by_name_and_how_they_were_obtained(tmp_path):
    RunFolder(tmp_path).write_results(METRICS, MANIFEST)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results == METRICS | MANIFEST
    assert results["parameters"] == 3_312_345 and results["parameters/attention"] == 1_000_000
    assert results["decode_state_bytes"] is None
    assert results["seconds"] == 287.4


@pytest.mark.parametrize("number", [torch.tensor(2.5), np.float64(2.5), 2.5])
def test_tensors_and_numpy_scalars_are_numbers(tmp_path, number):
    RunFolder(tmp_path).write_results({"val/loss": number}, {})
    assert (tmp_path / "results.json").read_text() == '{\n  "val/loss": 2.5\n}\n'


def test_what_json_cannot_say_is_null_with_a_note(tmp_path):
    metrics = {"val/loss": torch.tensor(math.nan), "test/perplexity": math.inf, "test/bleu": 0.0}
    RunFolder(tmp_path).write_results(metrics, {})
    assert json.loads((tmp_path / "results.json").read_text()) == {
        "val/loss": None,
        "test/perplexity": None,
        "test/bleu": 0.0,
        "not_finite": {"val/loss": "nan", "test/perplexity": "inf"},
    }


def test_outputs_stand_in_the_order_of_the_split(tmp_path):
    lines = [("a", "b"), ("c\u2028", "ç"), ("d", 'e"')]
    RunFolder(tmp_path).write_outputs("test", lines, {2: "f\nf", 1: "ç"})
    written = (tmp_path / "test_outputs.jsonl").read_text().split("\n")
    assert written[-1] == ""
    assert [json.loads(line) for line in written[:-1]] == [
        {"source": "c\u2028", "reference": "ç", "output": "ç"},
        {"source": "d", "reference": 'e"', "output": "f\nf"},
    ]


def test_a_shared_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="seed"):
        RunFolder(tmp_path).write_results({"seed": 1.0}, {"seed": 3})


def test_the_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    RunFolder(tmp_path).write_results({"test/bleu": 1.0}, {})

    def break_off(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", break_off)
        RunFolder(tmp_path).write_results({"test/bleu": 2.0}, {})
    assert json.loads(path.read_text()) == {"test/bleu": 1.0}
    RunFolder(tmp_path).write_results({"test/bleu": 3.0}, {})
    assert json.loads(path.read_text()) == {"test/bleu": 3.0}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_a_job_s_record_is_read_back(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.read_job() is None
    record = JobRecord(["attention=linear"], "ab", "failed", 2, "no ação", 1.5)
    folder.write_job(record)
    assert folder.read_job() == record
    # Another version may record more.
    folder.job_file.write_text('{"outcome": "trained", "config": "cd"}')
    assert folder.read_job() == JobRecord(outcome="trained")


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "results.json").write_text('{"val/loss": 1')
    with pytest.raises(BadInput, match=r"results\.json is not JSON"):
        RunFolder(tmp_path).read_results()


def test_a_checkpoint_leads_to_its_run(tmp_path):
    inside, moved = tmp_path / "run" / "checkpoints" / "best.ckpt", tmp_path / "mine" / "best.ckpt"
    assert RunFolder.of_checkpoint(inside).path == tmp_path / "run"
    assert RunFolder.of_checkpoint(moved).path == tmp_path / "mine"


def test_a_run_is_of_the_sweep_or_the_comparison_that_it_is_in(tmp_path):
    assert RunFolder(tmp_path / "run").sweep_name() is None
    for path in ("sweep/3", "comparison/tuning/3"):
        run = RunFolder(tmp_path / path)
        run.path.mkdir(parents=True)
        run.write_job(JobRecord())
        (run.evaluations / "now").mkdir(parents=True)
    (tmp_path / "comparison" / "plan.json").write_text("{}")
    assert RunFolder(tmp_path / "sweep/3").sweep_name() == "sweep"
    assert RunFolder(tmp_path / "comparison/tuning/3").sweep_name() == "comparison"
    assert RunFolder(tmp_path / "comparison/tuning/3/evaluations/now").sweep_name() == "comparison"
