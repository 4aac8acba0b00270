"""Runs in W&B: whole, and those of a sweep a group, each of which goes on where it was cut off."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.cli.conftest import LINES, SMALL, interrupt
from tests.cli.test_runs import exit_code, records

OPTIONS = [*SMALL, *LINES, "data.tokens_per_batch=512", "callbacks=minimal", "test=false"]


def run_record(written: Path) -> dict:
    """Return what W&B records of a run before it trains."""
    lines = [json.loads(line) for line in records(written).splitlines()]
    return next(line["run"] for line in lines if line["type"] == "run")


def wandb_folders(job: Path) -> list[Path]:
    return sorted((job / "wandb").glob("offline-run-*"))


@pytest.mark.slow
def test_a_job_that_is_killed_goes_on_as_the_same_run(program):
    sweep = program.folder / "sweep of two"
    command = ["train", "-m", "seed=1,2", *OPTIONS, f"hydra.sweep.dir='{sweep}'"]
    command += ["trainer.max_steps=200", "trainer.val_check_interval=5"]
    launched = program.start(*command)
    try:
        wait_until((sweep / "0" / "checkpoints" / "last.ckpt").exists)
        time.sleep(1.5)  # wandb writes every second
        children = Path(f"/proc/{launched.pid}/task/{launched.pid}/children").read_text()
        os.kill(int(children.split()[0]), signal.SIGKILL)
        launched.communicate()
    finally:
        launched.kill()
    outcomes = [json.loads((sweep / n / "job.json").read_text())["outcome"] for n in "01"]
    assert outcomes == ["killed", "trained"]

    done = program(*command)
    assert "1 of 2 jobs have their result already" in done.stdout
    first, again = map(run_record, wandb_folders(sweep / "0"))
    (other,) = map(run_record, wandb_folders(sweep / "1"))
    assert first["run_id"] == again["run_id"] != other["run_id"]
    assert first["display_name"] == again["display_name"] == "translation-multi_head-rotary-1"
    assert other["display_name"] == "translation-multi_head-rotary-2"
    assert {run["run_group"] for run in (first, again, other)} == {"sweep of two"}
    killed, finished = map(records, wandb_folders(sweep / "0"))
    assert '"exit"' not in killed and '"exit"' in finished
    assert "val/loss" in killed


@pytest.mark.slow
def test_a_run_holds_all_that_it_was_asked_for(program):
    callbacks = "callbacks=[default,attention_entropy,gradient_norms]"
    asked = [callbacks, "logger.wandb.artifacts=[config,checkpoint]", "trainer.max_steps=4"]
    asked += ["trainer.val_check_interval=2", "trainer.log_every_n_steps=1"]
    program("train", *SMALL, *LINES, *asked, "attention@cross_attention=additive")
    (run,) = program.runs()
    (written,) = wandb_folders(run)
    read = json.loads(records(written, "--summary"))
    assert read["name"] == "translation-multi_head-cross=additive-rotary-1"
    results = json.loads((run / "results.json").read_text())
    figures = read["summary"]
    for name in ("val/loss", "test/bleu", "parameters", "training_flops_per_token"):
        assert figures[name] == pytest.approx(results[name]), name
    assert figures["sacrebleu_signature"] == results["sacrebleu_signature"]
    lines = [json.loads(line) for line in records(written).splitlines()]
    history = [line["history"]["item"] for line in lines if line["type"] == "history"]
    losses = [item["val/loss"] for item in history if "val/loss" in item]
    assert [figures["val/best_loss"], figures["val/last_loss"]] == [min(losses), losses[-1]]
    # The curve ends with the training: what is scored afterwards is no point of it.
    assert losses == [value for _, _, value in results["history"]["val/loss"]]
    for name in ("attention_entropy/cross/layer-0/head-1", "gradients/all", "train/loss"):
        assert any(name in item for item in history), name
    names = {line["artifact"]["name"].split("-")[0] for line in lines if line["type"] == "artifact"}
    assert {"config", "checkpoint"} <= names


@pytest.mark.slow
def test_ctrl_c_reads_as_stopped(program):
    process = program.start("train", *OPTIONS, "trainer.max_steps=5000")
    try:
        wait_until(lambda: list(program.folder.glob("logs/*/runs/*/wandb/offline-run-*/*.wandb")))
        for line in process.stdout:
            if "step " in line:
                break
        interrupt(process)
        process.communicate()
    finally:
        process.kill()
    (run,) = program.runs()
    (written,) = wandb_folders(run)
    assert exit_code(written) == 255


def wait_until(happened) -> None:
    while not happened():
        time.sleep(0.05)


@pytest.mark.slow
def test_the_processes_of_a_job_are_one_run(program):
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_steps=2"]
    program("train", "-m", "optimizer.lr=0.001,0.002", *OPTIONS, *two)
    (sweep,) = (program.folder / "logs" / "translation" / "multiruns").iterdir()
    runs = []
    for number, rate in enumerate((0.001, 0.002)):
        (written,) = wandb_folders(sweep / str(number))
        summary = json.loads(records(written, "--summary"))
        assert summary["state"] == "finished"
        assert summary["config"]["optimizer/lr"] == rate
        runs.append(run_record(written))
    assert {run["run_group"] for run in runs} == {sweep.name}
    assert len({run["run_id"] for run in runs}) == 2
