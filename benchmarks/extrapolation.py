"""How far encodings reach beyond the length of training: a table and a picture of a sweep.

    python benchmarks/extrapolation.py [--output README.md] [overrides of train …]

Runs `attention-zoo train -m experiment=extrapolation` into a folder under `logs/extrapolation`, or
reads the sweep in the folder `--read`. Jobs that are refused, or fail, are said and left out.
"""

import argparse
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from attention_zoo.tasks.analysis.length_charts import draw_extrapolation
from attention_zoo.tasks.analysis.length_report import (
    all_lengths,
    format_ratio,
    format_score,
    score_at,
)
from attention_zoo.tasks.views.tables import Table, markdown_table, replace_section

PICTURE = "docs/images/extrapolation.png"  # beside the file that the table goes into


def sweep(runs: Path, overrides: list[str]) -> None:
    """Train and score all encodings, those of the experiment unless others are chosen."""
    command = [sys.executable, "-m", "attention_zoo", "train", "-m", "experiment=extrapolation"]
    options = [f"hydra.sweep.dir='{runs}'", "logger=none"]
    subprocess.run([*command, *options, *overrides])


def read_sweep(runs: Path) -> dict[str, dict[str, Any]]:
    """The results of the jobs that have any, by the names of their encodings."""
    found = {}
    for path in sorted(runs.glob("*/results.json"), key=lambda path: int(path.parent.name)):
        position = OmegaConf.load(path.with_name("config.yaml")).position.name
        found[position] = json.loads(path.read_text())
    return found


def table(jobs: dict[str, dict[str, Any]]) -> str:
    """An encoding a line: perplexity at each length, and how that grows with the length."""
    lengths = sorted({length for results in jobs.values() for length in all_lengths(results)})
    trained = next(iter(jobs.values()))["lengths"]["trained_at"]
    longest = lengths[-1]
    columns = ["position", *(f"at {length}" for length in lengths)]
    columns += [f"{longest} to {trained}", f"sliding at {longest}", "seconds"]
    rows = []
    for name, results in jobs.items():
        told = [
            "refused"
            if str(x) in results["lengths"]["refused"]
            else score_at(results, "perplexity", x)
            for x in lengths
        ]
        rows.append(
            [
                name,
                *(x if isinstance(x, str) else format_score(x, digits=1) for x in told),
                format_ratio(results, "perplexity", longest),
                format_score(score_at(results, "sliding_perplexity", longest), digits=1),
                f"{results['seconds']:.0f}",
            ]
        )
    return markdown_table(Table("Perplexity", columns, rows), code_names=True)


def caption(jobs: dict[str, dict[str, Any]], runs: Path) -> str:
    """How the table was made, out of one of its runs."""
    config = OmegaConf.load(next(runs.glob("*/config.yaml")))
    results = next(iter(jobs.values()))
    told, machine = results["lengths"], results["hardware"]
    stride = told["stride"][str(told["scored"][-1])]
    processor = ", ".join(machine["gpus"]) or f"{machine['cpu']}, {machine['threads']} threads"
    return (
        f"Perplexity of {told['targets']:,} tokens of the {told['split']} split, the same at every "
        f"length, by windows that do not overlap; those that slide move on by {stride} tokens. "
        f"Trained at {told['trained_at']} tokens: width {config.model.dim}, {config.model.layers} "
        f"layers, {config.trainer.max_steps} steps of {config.data.batch_size} windows; "
        f"{processor}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--output", type=Path, help="put table and picture between this file's marks"
    )
    parser.add_argument("--read", type=Path, help="the folder of a sweep that is done")
    parser.add_argument("overrides", nargs="*", help="overrides of train")
    arguments = parser.parse_args()
    runs = arguments.read
    if runs is None:
        runs = Path("logs/extrapolation", f"{datetime.now():%Y-%m-%d_%H-%M-%S}").resolve()
        sweep(runs, arguments.overrides)
    jobs = read_sweep(runs)
    if not jobs:
        sys.exit(f"There are no results in {runs}: there is no table to make.")
    text = f"{table(jobs)}\n\n{caption(jobs, runs)}"
    print(f"\n{text}")
    if arguments.output is not None:
        picture = arguments.output.parent / PICTURE
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_extrapolation(jobs).savefig(picture, dpi=150)
        shown = f"![Perplexity by length, and loss by position, of each encoding]({PICTURE})"
        document = replace_section(
            arguments.output.read_text(), "extrapolation", f"{shown}\n\n{text}"
        )
        arguments.output.write_text(document)


if __name__ == "__main__":
    main()
