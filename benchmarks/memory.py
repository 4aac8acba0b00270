"""Peak memory of training and evaluation on text files, and of translating standard input.

Each figure is the peak resident memory of the program's process, its libraries included. The text
is random words of a fixed vocabulary. Training learns a BPE, encodes the file and takes five steps;
evaluation takes all of its file.

    python -m benchmarks.memory [--output benchmarks/memory.md] [--megabytes 50 200 400 2000]
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from attention_zoo.tasks.views.tables import Table, markdown_table

MODEL = ["model=tiny", "model.dim=16", "model.heads=2", "model.layers=1", "model.ffn_dim=32"]
QUIET = ["logger=none", "callbacks=minimal", "test=false", "trainer.max_steps=5"]
EVALUATED_MEGABYTES = (1, 4, 16)
LINES = (1_000, 10_000, 100_000)
INTRODUCTION = """# Peak memory

The peak resident memory of the program's process, its libraries included, by the size of what it
reads: a text file that a language model is trained on for five steps, after its BPE was learnt and
the file was encoded; a text file that such a model is evaluated on; and lines of standard input
that `translate` reads. This command makes the page:
`python -m benchmarks.memory --output benchmarks/memory.md`
"""


def write_words(path: Path, size: int) -> None:
    """Write lines of random words, up to a number of bytes."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(20_000)]
    with path.open("w") as file:
        while file.tell() < size:
            lines = (" ".join(draw.choices(words, k=12)) for _ in range(1000))
            file.write("\n".join(lines) + "\n")


def peak_megabytes(folder: Path, *arguments: str, stdin: Path | None = None) -> int:
    """Run the program in a folder; return its peak memory in MB, or raise RuntimeError."""
    command = [sys.executable, "-m", "attention_zoo", *arguments]
    with (folder / "log").open("w") as log, (stdin or Path(os.devnull)).open() as lines:
        process = subprocess.Popen(command, cwd=folder, stdin=lines, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError((folder / "log").read_text())
    return usage.ru_maxrss // (1000 if sys.platform == "linux" else 10**6)


def main() -> None:
    """Measure all three, and print or write the table."""
    parser = argparse.ArgumentParser(description="Peak memory by the size of what is read.")
    parser.add_argument("--output", type=Path, help="write the page to this file")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[50, 200, 400, 2000])
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_words(folder / "valid.txt", 10_000)
        for megabytes in arguments.megabytes:
            write_words(folder / "train.txt", megabytes * 10**6)
            options = ["task=language_modeling", "data=text_files", "paths.cache=cache"]
            options += ["data.source.train=train.txt", "data.source.valid=valid.txt"]
            options.append("hydra.run.dir=language_model")
            peak = peak_megabytes(folder, "train", *MODEL, *QUIET, *options)
            rows.append(("train", f"{megabytes} MB", f"{peak:,} MB"))
            print(*rows[-1], flush=True)
        checkpoint = "ckpt_path=language_model/checkpoints/last.ckpt"
        for megabytes in EVALUATED_MEGABYTES:
            write_words(folder / "test.txt", megabytes * 10**6)
            peak = peak_megabytes(folder, "evaluate", checkpoint, "data.source.test=test.txt")
            rows.append(("evaluate", f"{megabytes} MB", f"{peak:,} MB"))
            print(*rows[-1], flush=True)
        options = ["data.source.size=60", "data.source.valid=8", "data.source.test=8"]
        peak_megabytes(folder, "train", *MODEL, *QUIET, *options, "hydra.run.dir=translation")
        checkpoint = "ckpt_path=translation/checkpoints/last.ckpt"
        short = ["decoding.max_ratio=0.1", "decoding.max_extra=2"]
        for count in LINES:
            (folder / "lines").write_text("12.50 US dollars, 3 hours ago\n" * count)
            options = [checkpoint, *short]
            peak = peak_megabytes(folder, "translate", *options, stdin=folder / "lines")
            translated = (folder / "log").read_text().count("\n")
            if translated != count:
                raise RuntimeError(f"{count} lines were given, and {translated} came out.")
            rows.append(("translate", f"{count:,} lines", f"{peak:,} MB"))
            print(*rows[-1], flush=True)
    if arguments.output is not None:
        table = Table("Peak memory", ("command", "input", "peak"), rows)
        arguments.output.write_text(f"{INTRODUCTION}\n{markdown_table(table, code_names=True)}\n")


if __name__ == "__main__":
    main()
