"""Seconds from the start of the program to its answer, or to the first step of a training.

The commands take turns in rounds. Each is a process of its own. With `--before`, another checkout
takes its turn after ours.

    python benchmarks/start_up.py [--output PAGE] [--rounds 5] [--before CHECKOUT]
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from attention_zoo.tasks.views.tables import Table, markdown_table

ROOT = Path(__file__).parents[1]
ONE_STEP = ("train", "trainer.max_steps=1", "logger=none", "test=false")
RECALL = ("experiment=recall", "data.source.vocabulary=512", "attention=linear")
TRIAL = ("train", *RECALL, "trainer.max_steps=20", "logger=none", "test=false", "lengths=[]")
# What is timed, and the beginning of the line at which the clock stops; without one, at the exit.
COMMANDS: dict[str, tuple[Sequence[str], str | None]] = {
    "`--help`": (("--help",), None),
    "`train --cfg job`": (("train", "--cfg", "job"), None),
    "`list`": (("list",), None),
    "`train`, first step": (ONE_STEP, "step 1/1"),
    "`train`, first step, data and tokenizer made anew": (
        (*ONE_STEP, "paths.cache=new"),
        "step 1/1",
    ),
    "`train experiment=recall` of 20 steps": (TRIAL, None),
    "the same as a trial of `compare`, without pictures": (
        (*TRIAL, "++callbacks.attention_maps=null", "++callbacks.samples=null"),
        None,
    ),
}
INTRODUCTION = """# Start-up

Seconds from the start of the process to its exit, or to the line of the first training step:
medians of {rounds} rounds in which the commands take turns. Trainings are on the CPU, of the
default task where nothing else is said. Their data are in the cache, unless they are made anew.
torchmetrics imports transformers {installed}.
This command makes the page: `{command}`
"""


def seconds(checkout: Path, arguments: Sequence[str], line: str | None, folder: Path) -> float:
    """Start the program in a folder; return the seconds to a line of its output, or to its exit."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "attention_zoo", *arguments]
    for name in ("logs", "new"):
        shutil.rmtree(folder / name, ignore_errors=True)
    with (folder / "errors").open("w+") as errors:
        started, stopped = time.perf_counter(), None
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdout is not None
        for printed in process.stdout:
            if line is not None and stopped is None and printed.startswith(line):
                stopped = time.perf_counter()
        if process.wait() or (line is not None and stopped is None):
            errors.seek(0)
            raise RuntimeError(f"{command} failed: {errors.read()}")
    return (stopped or time.perf_counter()) - started


def main() -> None:
    """Measure all commands, and print or write the table."""
    parser = argparse.ArgumentParser(description="Seconds to an answer or to the first step.")
    parser.add_argument("--output", type=Path, help="write the page to this file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", type=Path, help="another checkout, to compare with")
    arguments = parser.parse_args()
    checkouts = [ROOT] if arguments.before is None else [ROOT, arguments.before.absolute()]
    times: dict[tuple[str, Path], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for round_ in range(arguments.rounds + 1):  # The first fills caches, and does not count.
            for label, (command, line) in COMMANDS.items():
                for checkout in checkouts:
                    taken = seconds(checkout, command, line, folder)
                    if round_:
                        times.setdefault((label, checkout), []).append(taken)
                    print(f"{round_} {label} {checkout.name} {taken:.2f}", flush=True)
    rows = [
        (label, *(f"{statistics.median(times[label, checkout]):.2f}" for checkout in checkouts))
        for label in COMMANDS
    ]
    columns = ("command", "seconds", "seconds before")[: 1 + len(checkouts)]
    table = markdown_table(Table("Start-up", columns, rows, "lrr"[: len(columns)]))
    print(table)
    if arguments.output is not None:
        call = f"python benchmarks/start_up.py --rounds {arguments.rounds}"
        call += " --before CHECKOUT" if arguments.before is not None else ""
        has_transformers = find_spec("transformers") is not None
        introduction = INTRODUCTION.format(
            rounds=arguments.rounds,
            installed="too, which is installed" if has_transformers else "where that is installed",
            command=f"{call} --output {arguments.output}",
        )
        arguments.output.write_text(f"{introduction}\n{table}\n")


if __name__ == "__main__":
    main()
