"""Signals to the program, and kills: what is saved, said, and returned to the scheduler."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from tests.cli.conftest import QUICK, ROOT
from tests.cli.kills import final_state, same

pytestmark = pytest.mark.slow

ENDLESS = [*QUICK, "logger=none", "+callbacks.progress.line_seconds=0.1"]
ENDLESS += ["trainer.val_check_interval=100000", "trainer.max_steps=100000"]
DDP = ["trainer=ddp"]


def wait_for_line(process, word):
    for line in process.stdout:
        if word in line:
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize("devices", [[], DDP])
def test_sigterm_to_the_first_process_saves_before_the_first_validation(program, devices):
    process = program.start("train", *ENDLESS, *devices, "hydra.run.dir=run")
    try:
        wait_for_line(process, "step ")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
    finally:
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
    assert process.returncode == 143, err
    assert err == "SIGTERM: stopping after this step; a second signal stops at once.\n"
    run = program.folder / "run"
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    steps = checkpoint["global_step"]
    assert 0 < steps == json.loads((run / "results.json").read_text())["steps"]
    assert len(checkpoint["attention_zoo"]["rank_states"]) == (2 if devices else 1)
    last = "ckpt_path=run/checkpoints/last.ckpt"
    assert out.splitlines()[-1].startswith("Go on with: attention-zoo train")
    assert out.splitlines()[-1].endswith(last)
    more = [f"trainer.max_steps={steps + 1}", last]
    program("train", *ENDLESS[:-1], *devices, "hydra.run.dir=run", *more)


# Sends a signal to the last rank in the first validation.
STOPPING = """
import os, signal
from lightning.pytorch import Callback

class Stop(Callback):
    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        is_last = trainer.global_rank == trainer.world_size - 1
        if "STOP" in os.environ and trainer.state.fn == "fit" and batch_idx == 0 and is_last:
            os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("devices", [["trainer=fsdp"], DDP])
def test_all_ranks_stop_within_a_validation_and_repeat_it(program, devices):
    (program.folder / "stopping.py").write_text(STOPPING)
    options = [*QUICK, *devices, "logger=none", "test=false", "callbacks=averaged"]
    options += ["data.tokens_per_batch=128", "trainer.max_steps=4", "trainer.val_check_interval=2"]
    options += ["model.dropout=0.2", "~callbacks.attention_maps", "~callbacks.samples"]
    options += ["+callbacks.stop._target_=stopping.Stop", "trainer.log_every_n_steps=2"]
    run, whole = (program.folder / name for name in ("run", "whole"))
    done = program("train", *options, f"hydra.run.dir={run}", code=143, STOP="1")
    assert "  val/loss" not in done.stdout and "Go on with" in done.stdout
    last = run / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 2
    program("train", *options, f"hydra.run.dir={run}", "ckpt_path=last")
    program("train", *options, f"hydra.run.dir={whole}")
    assert same(final_state(run), final_state(whole))


def test_a_signal_within_an_accumulated_step_waits_for_its_end(program):
    """The validation lies between batches of one step, whose gradients are in no checkpoint."""
    (program.folder / "stopping.py").write_text(STOPPING)
    options = [*QUICK, "logger=none", "test=false", "callbacks=averaged", "model.dropout=0.2"]
    options += ["data.tokens_per_batch=128", "trainer.max_steps=3", "trainer.val_check_interval=6"]
    options += ["trainer.accumulate_grad_batches=4", "~callbacks.attention_maps"]
    options += ["~callbacks.samples", "+callbacks.stop._target_=stopping.Stop"]
    run, whole = (program.folder / name for name in ("run", "whole"))
    done = program("train", *options, f"hydra.run.dir={run}", code=143, STOP="1")
    assert "step 1  val/loss" in done.stdout
    last = run / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 2
    program("train", *options, f"hydra.run.dir={run}", "ckpt_path=last")
    program("train", *options, f"hydra.run.dir={whole}")
    assert same(final_state(run), final_state(whole))


def test_a_signal_before_the_training_ends_it_in_a_line(program):
    process = program.start("train", *ENDLESS)
    wait_for_line(process, "config")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 143
    assert err == "stopped by SIGTERM\n"


def test_a_sweep_passes_a_signal_on(program):
    sweep = program.folder / "sweep"
    options = ["-m", "seed=1,2", f"hydra.sweep.dir={sweep}"]
    process = program.start("train", *ENDLESS, *options)
    wait_for_line(process, "step ")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert process.returncode == 143
    assert "interrupted (SIGINT)" in out and "not run" in out
    assert (sweep / "0" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("task", ["translation", "language_modeling"])
@pytest.mark.parametrize("devices", [1, 2])
def test_killed_trainings_end_as_one_that_was_left_alone(tmp_path, task, devices):
    command = [sys.executable, "-m", "tests.cli.kills", str(tmp_path / "kills"), f"task={task}"]
    kills = 3 if devices == 1 else 1
    done = subprocess.run(
        [*command, f"devices={devices}", f"kills={kills}", "seed=0"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.endswith(f"{kills} of {kills} identical\n"), (done.stdout, done.stderr)
