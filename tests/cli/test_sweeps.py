"""Sweeps of real trainings, as users start them."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.conftest import QUICK

# A folder of experiments of the user's own: nine that train, and one for each way not to.
TRIALS = {
    **{
        f"rate_{n}": f"{{optimizer: {{lr: 0.00{n}}}, trainer: {{max_steps: 3}}}}"
        for n in range(1, 10)
    },
    "cannot": "defaults: [{override /attention: linear}, {override /position: alibi}]",
    "bursts": "{optimizer: {lr: 1.0e+30}, trainer: {max_steps: 3}}",
    # Long enough to be caught in the middle.
    "killed": "trainer: {max_steps: 600, val_check_interval: 20}",
}


@pytest.mark.slow
def test_a_sweep_outlives_its_jobs_and_goes_on(program):
    trials = program.folder / "own" / "experiment"
    trials.mkdir(parents=True)
    for name, settings in TRIALS.items():
        (trials / f"{name}.yaml").write_text(f"# @package _global_\n{settings}\n")
    command = ["train", "-m", "--config-dir", "own", f"experiment={','.join(TRIALS)}", *QUICK]
    sweep = program.folder / "sweep"
    command += [f"hydra.sweep.dir={sweep}", "jobs=2", "schedule=constant", "logger=wandb"]
    process = program.start(*command)
    victim = sweep / str(list(TRIALS).index("killed"))
    kill_after(victim / "checkpoints" / "last.ckpt", process)
    printed, _ = process.communicate()
    assert process.returncode == 2, printed
    outcomes = {name: record(sweep / str(n))["outcome"] for n, name in enumerate(TRIALS)}
    other = {"cannot": "refused", "bursts": "diverged", "killed": "killed"}
    assert outcomes == {name: other.get(name, "trained") for name in TRIALS}
    assert "killed: signal 9 (SIGKILL)" in " ".join(printed.split())

    times = {path: path.stat().st_mtime_ns for path in sweep.glob("*/job.json")}
    done = program(*command, code=2)  # One has diverged, as before.
    assert "11 of 12 jobs have their result already" in done.stdout
    assert "killed (" not in done.stdout
    renewed = {path.parent for path in times if path.stat().st_mtime_ns != times[path]}
    assert renewed == {victim} and record(victim)["outcome"] == "trained"
    resumed = re.search(r"ckpt_path=\S*last\.ckpt", done.stdout + (victim / "job.log").read_text())
    assert resumed is not None
    first, second = sorted((victim / "wandb").glob("offline-run-*"))
    assert first.name.rpartition("-")[2] == second.name.rpartition("-")[2]

    report = program("report", str(sweep)).stdout
    assert "12 jobs: 10 trained, 1 refused, 1 diverged" in " ".join(report.split())
    lines = (sweep / "results.csv").read_text().splitlines()
    assert len(lines) == 1 + len(TRIALS)


def kill_after(sign: Path, sweep: subprocess.Popen) -> None:
    """Kill the job of a sweep, all its processes, once a file is there."""
    while not sign.exists():
        assert sweep.poll() is None, sweep.communicate()
        time.sleep(0.02)
    run = str(sign.parents[1])
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().split("\0")
        except OSError:
            continue  # It has ended.
        if any(run in word for word in words if word.startswith("hydra.run.dir=")):
            os.killpg(int(folder.name), signal.SIGKILL)
            return
    raise AssertionError(f"no process trains into {run}")


def record(run: Path) -> dict:
    return json.loads((run / "job.json").read_text())


@pytest.mark.slow
def test_two_launches_give_the_same_losses_to_the_bit(program):
    found = []
    for folder in ("one", "two"):
        program(
            *["train", "-m", "optimizer.lr=0.001,0.01", *QUICK, "trainer.max_steps=3"],
            *[f"hydra.sweep.dir={program.folder / folder}", "logger=none", "jobs=2"],
        )
        results = [program.folder / folder / job / "results.json" for job in "01"]
        metrics = [json.loads(path.read_text()) for path in results]
        found.append([{k: v for k, v in each.items() if "/loss" in k} for each in metrics])
    assert found[0] == found[1]
    assert all({"val/loss", "test/loss"} <= each.keys() for each in found[0])
    assert found[0][0] != found[0][1]
