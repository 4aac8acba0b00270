"""Length extrapolation of positional encodings: a table and a picture of a sweep.

    python benchmarks/extrapolation.py [--output docs/lengths.md] [overrides of train …]

This runs `attention-zoo train -m experiment=extrapolation` in a folder under `logs/extrapolation`,
or reads the sweep in the folder `--read`. The table leaves out jobs that fail or are refused; the
sweep reports them.
"""

import argparse
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from attention_zoo.tasks.analysis.length_report import (
    all_lengths,
    draw_extrapolation,
    format_ratio,
    format_score,
)
from attention_zoo.tasks.run_folder import RunFolder
from attention_zoo.tasks.views.tables import Table, markdown_table, replace_section

PICTURE = "images/extrapolation.png"  # from the folder of the file with the table


def run_sweep(folder: Path, overrides: list[str]) -> None:
    """Train and score the encodings of the experiment, or those of the overrides."""
    command = [sys.executable, "-m", "attention_zoo", "train", "-m", "experiment=extrapolation"]
    subprocess.run([*command, f"hydra.sweep.dir='{folder}'", "logger=none", *overrides])


def format_table(jobs: dict[str, dict[str, Any]]) -> str:
    """Return a row for each encoding: perplexity at each length, and its growth with the length."""
    lengths = all_lengths(*jobs.values())
    trained = next(iter(jobs.values()))["lengths"]["trained_at"]
    longest = lengths[-1]
    columns = ["position", *(f"at {length}" for length in lengths)]
    columns += [f"{longest} to {trained}", f"sliding at {longest}", "seconds"]
    rows = []
    for name, results in jobs.items():
        refused = results["lengths"]["refused"]
        scores = {x: format_score(results, "perplexity", x, digits=1) for x in lengths}
        cells = ["refused" if str(x) in refused else scores[x] for x in lengths]
        cells.append(format_ratio(results, "perplexity", longest))
        cells.append(format_score(results, "sliding_perplexity", longest, digits=1))
        rows.append([name, *cells, f"{results['seconds']:.0f}"])
    return markdown_table(Table("Perplexity", columns, rows), code_names=True)


def format_caption(run: RunFolder) -> str:
    """Return how the table was made, from one of its runs."""
    config, results = run.read_config(), run.read_results()
    lengths, machine = results["lengths"], results["hardware"]
    stride = lengths["stride"][str(lengths["scored"][-1])]
    processor = ", ".join(machine["gpus"]) or f"{machine['cpu']}, {machine['threads']} threads"
    return (
        f"Perplexity of {lengths['targets']:,} tokens of the {lengths['split']} split, the same at "
        f"every length, in windows without overlap; sliding windows move by {stride} tokens. "
        f"Trained at {lengths['trained_at']} tokens: width {config['model']['dim']}, "
        f"{config['model']['layers']} layers, {config['trainer']['max_steps']} steps of "
        f"{config['data']['batch_size']} windows; {processor}."
    )


def main() -> None:
    """Run or read the sweep, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--output", type=Path, help="put table and picture between this file's marks"
    )
    parser.add_argument("--read", type=Path, help="the folder of a finished sweep")
    parser.add_argument("overrides", nargs="*", help="overrides of train")
    arguments = parser.parse_args()
    folder = arguments.read
    if folder is None:
        folder = Path("logs/extrapolation", f"{datetime.now():%Y-%m-%d_%H-%M-%S}").resolve()
        run_sweep(folder, arguments.overrides)
    paths = sorted(folder.glob("*/results.json"), key=lambda path: int(path.parent.name))
    runs = [RunFolder(path.parent) for path in paths]
    if not runs:
        sys.exit(f"{folder} has no results for a table.")
    jobs = {run.read_config()["position"]["name"]: run.read_results() for run in runs}
    text = f"{format_table(jobs)}\n\n{format_caption(runs[0])}"
    print(f"\n{text}")
    if arguments.output is not None:
        picture = arguments.output.parent / PICTURE
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_extrapolation(jobs).savefig(picture, dpi=150)
        image = f"![Perplexity by length, and loss by position, of each encoding]({PICTURE})"
        document, section = arguments.output.read_text(), f"{image}\n\n{text}"
        arguments.output.write_text(replace_section(document, "extrapolation", section))


if __name__ == "__main__":
    main()
