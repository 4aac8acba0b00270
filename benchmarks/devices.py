"""Equality of several processes and one: the same batches, losses and scores.

Each run trains a tiny model in float64 on the CPU. Several processes are compared with one process
that takes the same batches in each step of the optimizer: with `accumulate_grad_batches` as many
batches as `ddp` and `fsdp` have processes; one batch for `tensor_parallel`.

    python benchmarks/devices.py [--output benchmarks/devices.md]
"""

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from attention_zoo.tasks.views.tables import Table, markdown_table

OPTIONS = [
    "model=tiny",
    "model.dim=16",
    "model.layers=1",
    "model.ffn_dim=32",
    "trainer.precision=64-true",
    "trainer.accelerator=cpu",
    "trainer.max_steps=8",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=1.0",
    "trainer.check_val_every_n_epoch=1",
    "callbacks=minimal",
    "logger=csv",
]
TASKS = {
    "translation": [
        "tokenizer=characters",
        "data.source.size=61",
        "data.source.valid=7",
        "data.source.test=9",
        "data.tokens_per_batch=512",
        "decoding.max_extra=5",
        "decoding.max_ratio=0.5",
    ],
    "language_modeling": [
        "task=language_modeling",
        "data=recall",
        "data.source.size=25",
        "data.source.valid=9",
        "data.source.test=9",
        "data.batch_size=4",
    ],
}
TRAINERS = ("ddp", "fsdp", "tensor_parallel")
INTRODUCTION = """# Several processes

The largest difference from one process that takes the same batches in each step of the optimizer,
after 8 steps over more than one epoch, in float64 on the CPU with gloo. The last steps of the
epochs have fewer batches than there are processes. This command makes the page:
`python benchmarks/devices.py --output benchmarks/devices.md`
"""


SCORES = {"translation": "test/bleu", "language_modeling": "test/accuracy"}


def train(folder: Path, *options: str) -> dict[str, Any]:
    """Train in a folder, if nothing was; return the results, and the losses of all steps."""
    if not folder.exists():
        names = ("WANDB", "HYDRA", "MASTER", "LOCAL_RANK", "WORLD_SIZE")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(names)}
        command = [sys.executable, "-m", "attention_zoo", "train", *OPTIONS, *options]
        done = subprocess.run(
            [*command, f"hydra.run.dir={folder}"],
            env=environment | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    with (folder / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("train/loss", "val/loss"):
        results[f"losses of {name}"] = [float(row[name]) for row in rows if row[name]]
    return results


def compare(folder: Path, task: str, trainer: str, processes: int) -> dict[str, float]:
    """Train by several processes and by one; return the largest differences by what they are of."""
    options = [*TASKS[task], f"trainer={trainer}", f"trainer.devices={processes}"]
    several = train(folder / f"{task}-{trainer}-{processes}", *options)
    batches = 1 if trainer == "tensor_parallel" else processes
    options = [*TASKS[task], f"trainer.accumulate_grad_batches={batches}"]
    one = train(folder / f"{task}-{batches}", *options)
    differences = {}
    for name in ("train/loss", "val/loss"):
        pairs = zip(several[f"losses of {name}"], one[f"losses of {name}"], strict=True)
        differences[name] = max(abs(ours - theirs) for ours, theirs in pairs)
    for name in ("test/loss", SCORES[task], "tokens_seen"):
        differences[name] = abs(several[name] - one[name])
    return differences


def main() -> None:
    """Compare all trainers, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="write the page to this file")
    output = parser.parse_args().output
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for task, trainer, processes in itertools.product(TASKS, TRAINERS, (2, 4)):
            cells = [
                f"{x:.1e}" if x else "0"
                for x in compare(Path(folder), task, trainer, processes).values()
            ]
            rows.append((task, trainer, str(processes), *cells))
            print(*rows[-1], flush=True)
    columns = (
        "task",
        "trainer",
        "processes",
        "train/loss",
        "val/loss",
        "test/loss",
        "BLEU or accuracy",
        "tokens seen",
    )
    if output is not None:
        table = markdown_table(Table("Several processes", columns, rows), code_names=True)
        output.write_text(f"{INTRODUCTION}\n{table}\n")


if __name__ == "__main__":
    main()
