"""Seconds from the start of the program to its answer, or to the first step of a training.

The commands take turns in rounds. Each is a process of its own. With `--before`, another checkout
takes its turn after ours. It needs Linux, whose /proc tells the processor time of a process.

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
One core starts the program, so that on an idle machine both figures are alike; other programs that
run at the same time make the first one larger.
torchmetrics imports transformers {installed}.
This command makes the page: `{command}`
"""


def start(
    checkout: Path, arguments: Sequence[str], line: str | None, folder: Path
) -> tuple[float, float]:
    """Start the program in a folder, and wait for a line of its output, or for its exit.

    Returns:
        The seconds until then, and those of the processor.
    """
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "attention_zoo", *arguments]
    for name in ("logs", "new"):
        shutil.rmtree(folder / name, ignore_errors=True)
    with (folder / "errors").open("w+") as errors:
        started, taken = time.perf_counter(), None
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert process.stdout is not None
        for printed in process.stdout:
            if line is not None and taken is None and printed.startswith(line):
                taken = time.perf_counter() - started, processor_seconds(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        if status or (line is not None and taken is None):
            errors.seek(0)
            raise RuntimeError(f"{command} failed: {errors.read()}")
    return taken or (time.perf_counter() - started, usage.ru_utime + usage.ru_stime)


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure all commands, and print or write the table."""
    parser = argparse.ArgumentParser(description="Seconds to an answer or to the first step.")
    parser.add_argument("--output", type=Path, help="write the page to this file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", type=Path, help="another checkout, to compare with")
    arguments = parser.parse_args()
    checkouts = [ROOT] if arguments.before is None else [ROOT, arguments.before.absolute()]
    times: dict[tuple[str, Path], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start(ROOT, ONE_STEP, None, folder)  # It fills the cache.
        for _ in range(arguments.rounds):
            for label, (command, line) in COMMANDS.items():
                for checkout in checkouts:
                    taken = start(checkout, command, line, folder)
                    times.setdefault((label, checkout), []).append(taken)
                    print(label, checkout, *(f"{x:.2f}" for x in taken), flush=True)
    rows = [
        (
            label,
            *(
                f"{statistics.median(column):.2f}"
                for checkout in checkouts
                for column in zip(*times[label, checkout], strict=True)
            ),
        )
        for label in COMMANDS
    ]
    columns = ["command", "seconds", "of the processor", "seconds before", "of the processor"]
    columns = columns[: 1 + 2 * len(checkouts)]
    table = markdown_table(Table("Start-up", columns, rows, "lrrrr"[: len(columns)]))
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
