"""Kill trainings by signal 9 at random moments, resume them, and compare them with one left alone.

`python -m tests.cli.kills FOLDER task=language_modeling kills=20 seed=0 devices=1`, and overrides
of the training.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from tests.cli.conftest import QUICK, SMALL

EVERY = ["trainer.max_steps=60", "trainer.val_check_interval=7", "trainer.log_every_n_steps=4"]
EVERY += ["callbacks=averaged", "callbacks.last_checkpoint.every_n_steps=3", "logger=none"]
EVERY += ["model.dropout=0.2", "~callbacks.attention_maps", "~callbacks.samples"]
TRAININGS = {
    "translation": [*QUICK, *EVERY, "trainer.accumulate_grad_batches=2"],
    "language_modeling": [
        *["task=language_modeling", *SMALL, *EVERY, "data=python_docs", "data.batch_size=4"],
        *["data.context_length=16", "+trainer.limit_train_batches=25", "optimizer=adamw"],
        *["+trainer.limit_val_batches=3", "test=false", "schedule=cosine"],
    ],
}
# Of a process, not of what it trains.
MEASURED = (
    "git_commit",
    "seconds",
    "tokens_per_second",
    "inspection_seconds",
    "peak_memory_bytes",
    "resumed",
)


def start(options: list[str], folder: Path, devices: int) -> int:
    """Start a training as a process of its own session; return its id.

    With one device it is a fork of this process, which spares the imports.
    """
    arguments = ["train", *options, f"hydra.run.dir={folder}"]
    log = folder.with_suffix(".log").open("a")
    if devices > 1:
        command = [sys.executable, "-m", "attention_zoo", *arguments, "trainer=ddp"]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True).pid
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    sys.argv = ["attention-zoo", *arguments]
    code = 1
    try:
        from attention_zoo.tasks.commands.cli import main

        main()
        code = 0
    finally:
        os._exit(code)


def wait_for_checkpoint(pid: int, folder: Path) -> None:
    """Wait until a training has written its first checkpoint."""
    while not (folder / "checkpoints" / "last.ckpt").exists():
        ended, _ = os.waitpid(pid, os.WNOHANG)
        assert not ended, folder.with_suffix(".log").read_text()[-2000:]
        time.sleep(0.005)


def finish(pid: int, folder: Path) -> None:
    """Wait for a training; show what it printed if it failed."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, (code, folder.with_suffix(".log").read_text()[-2000:])


def final_state(folder: Path) -> tuple[dict, dict]:
    """Return what a training has ended with: its last checkpoint, and its results."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    parts = {x: checkpoint[x] for x in ("state_dict", "optimizer_states", "lr_schedulers")}
    parts["ranks"] = checkpoint["attention_zoo"]["rank_states"]
    averaged = torch.load(folder / "checkpoints" / "averaged.ckpt", weights_only=True)
    parts["averaged"] = averaged["state_dict"]
    results = json.loads((folder / "results.json").read_text())
    return parts, {name: x for name, x in results.items() if name not in MEASURED}


def same(ours, theirs) -> bool:
    """Return whether two nests of tensors and plain values are equal to the bit."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


def kill_and_compare(
    folder: Path, overrides: list[str], *, task: str, kills: int, seed: int = 0, devices: int = 1
) -> int:
    """Return how many of the killed trainings end as the one that was left alone."""
    draw, options = random.Random(seed), [*TRAININGS[task], *overrides]
    whole = folder / "whole"
    finish(start(options, whole, devices), whole)  # It prepares the data.
    shutil.rmtree(whole)
    pid = start(options, whole, devices)
    wait_for_checkpoint(pid, whole)
    started = time.monotonic()
    finish(pid, whole)
    seconds, expected, count = time.monotonic() - started, final_state(whole), 0
    for number in range(kills):
        run = folder / f"run-{number}"
        pid = start(options, run, devices)
        wait_for_checkpoint(pid, run)
        time.sleep(seconds * draw.uniform(0, 0.9))
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        last = run / "checkpoints" / "last.ckpt"
        step = torch.load(last, weights_only=True)["global_step"]
        finish(start([*options, f"ckpt_path={last}"], run, devices), run)
        is_same = same(final_state(run), expected)
        count += is_same
        print(f"killed after step {step}: {'same' if is_same else 'DIFFERS'}", flush=True)
    return count


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = dict(argument.split("=") for argument in sys.argv[2:])
    place = Path(sys.argv[1]).absolute()
    place.mkdir(parents=True)
    os.chdir(place)
    os.environ |= {"ATTENTION_ZOO_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    numbers = {name: int(chosen[name]) for name in ("kills", "seed", "devices") if name in chosen}
    others = [f"{name}={value}" for name, value in chosen.items() if name not in ("task", *numbers)]
    total = kill_and_compare(place, others, task=chosen["task"], **numbers)
    print(f"{total} of {numbers['kills']} identical")
    sys.exit(total != numbers["kills"])
