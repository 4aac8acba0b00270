"""Runs that resume, are interrupted, crash or are written down: what they leave behind."""

import json
import subprocess
import sys

import pytest
import torch

from tests.cli.conftest import LINES, ROOT, SMALL, interrupt
from tests.cli.kills import same

# The rate of a step depends on its number alone, not on the length of the run.
STEADY = [*SMALL, *LINES, "schedule=inverse_square_root", "schedule.warmup_steps=2"]
# Small batches: the two steps before and after the stop lie within an epoch.
STEADY += ["data.tokens_per_batch=512", "callbacks=minimal", "logger=none", "test=false"]


def last_of(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.slow
def test_a_resumed_run_is_the_run_that_never_stopped(program):
    program("train", *STEADY, "trainer.max_steps=2")
    program("train", *STEADY, "trainer.max_steps=4", "ckpt_path=last")
    program("train", *STEADY, "trainer.max_steps=4")
    first, resumed, whole = map(last_of, program.runs())
    assert [first["global_step"], resumed["global_step"], whole["global_step"]] == [2, 4, 4]
    assert not same(first["state_dict"], whole["state_dict"])
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert same(resumed[part], whole[part]), part
    told = [json.loads((run / "results.json").read_text()) for run in program.runs()]
    seen = [results["tokens_seen"] for results in told]
    assert seen[0] < seen[1] == seen[2]
    assert told[1]["data_order"] == told[2]["data_order"]
    # The first run logged, and was validated, at its own end too.
    for loss, steps in (("train/loss", [2, 4]), ("val/loss", [2, 4])):
        curves = [results["history"][loss] for results in told]
        assert [step for step, _, _ in curves[1]] == steps
        assert curves[1][0] == curves[0][-1]
        assert curves[1][-1][:2] == curves[2][-1][:2] == [4, seen[2]]
    assert told[1]["history"]["val/loss"][-1] == told[2]["history"]["val/loss"][-1]


def wait_for(process, word):
    """Read the output up to a line that holds the word."""
    for line in process.stdout:
        if word in line:
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_that_resumes(program):
    process = program.start("train", *STEADY, "trainer.max_steps=5000")
    try:
        wait_for(process, "step ")
        interrupt(process)
        out, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.strip() == "SIGINT: stopping after this step; a second signal stops at once."
    (run,) = program.runs()
    steps = last_of(run)["global_step"]
    assert 0 < steps < 5000
    checkpoint = (run / "checkpoints" / "last.ckpt").relative_to(program.folder)
    assert out.strip().endswith(f"ckpt_path={checkpoint}")
    program("train", *STEADY, f"trainer.max_steps={steps + 1}", f"ckpt_path={checkpoint}")
    assert last_of(program.runs()[-1])["global_step"] == steps + 1


def records(run, *flags):
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *flags, str(run)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


CRASH = """
from lightning.pytorch import Callback
class Crash(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            raise RuntimeError("planted")
"""


@pytest.mark.slow
def test_a_crash_is_a_crash(program):
    # A callback is built by the name of a module of ours or of our frameworks: plant it in one.
    planted = program.folder / "planted.py"
    (program.folder / "sitecustomize.py").write_text(
        "import importlib.abc, sys\n"
        "class Plant(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'attention_zoo.planted':\n"
        "            from importlib.util import spec_from_file_location\n"
        f"            return spec_from_file_location(name, {str(planted)!r})\n"
        "sys.meta_path.insert(0, Plant())\n"
    )
    planted.write_text(CRASH)
    done = program(
        "train",
        *SMALL,
        *LINES,
        "+callbacks.crash._target_=attention_zoo.planted.Crash",
        "logger=wandb",
        code=1,
        PYTHONPATH=f"{program.folder}:{ROOT}",
    )
    assert "Traceback" in done.stderr
    assert done.stderr.strip().endswith("RuntimeError: planted")
    (run,) = program.runs()
    (written,) = (run / "wandb").glob("offline-run-*")
    assert exit_code(written) == 1


def exit_code(written):
    exits = [json.loads(line) for line in records(written).splitlines() if '"exit"' in line]
    (ended,) = [record["exit"] for record in exits if record.get("type") == "exit"]
    return ended.get("exit_code", ended.get("exitCode", 0))


@pytest.mark.slow
def test_a_finished_run_is_written_down_whole(program):
    program("train", *SMALL, *LINES, "trainer.max_steps=3", "trainer.log_every_n_steps=1")
    (run,) = program.runs()
    (written,) = (run / "wandb").glob("offline-run-*")
    assert exit_code(written) == 0
    text = records(written)
    for key in ("train/loss", "train/learning_rate", "train/tokens_per_second", "val/loss"):
        assert key in text, key
    for key in ("attention/heads", "position/base", "parameters/attention"):
        assert key in text, key
    assert "samples" in text and "attention/probe-1/cross/layer-0" in text
    results = json.loads((run / "results.json").read_text())
    summary = json.loads(records(written, "--summary"))
    flat = json.dumps(summary)
    assert "test/bleu" in flat and repr(results["test/loss"])[:8] in flat
    media = written / "files" / "media"
    assert list(media.glob("images/**/*.png")) and list(media.glob("table/**/*.json"))


@pytest.mark.slow
def test_no_callbacks_and_other_loggers_work(program):
    done = program(
        "train",
        *SMALL,
        *LINES,
        "trainer.max_steps=2",
        "callbacks=none",
        "logger=[tensorboard,csv]",
    )
    (run,) = program.runs()
    assert json.loads((run / "results.json").read_text())["tokens_seen"] > 0
    assert (run / "csv" / "metrics.csv").exists() and list((run / "tensorboard").iterdir())
    assert not (run / "checkpoints").exists()
    assert "checkpoints" not in done.stdout and done.stderr == ""


@pytest.mark.slow
def test_two_runs_of_one_second_do_not_share_a_folder(program):
    options = ["train", *SMALL, *LINES, "trainer.max_steps=1", "callbacks=none", "logger=none"]
    both = [program.start(*options) for _ in range(2)]
    for process in both:
        process.communicate()
    assert [process.returncode for process in both] == [0, 0]
    assert len(program.runs()) == 2
