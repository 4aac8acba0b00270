"""Associative recall of attention mechanisms: a table of `experiment=recall`.

    python benchmarks/recall.py [--output docs/diagnostics.md] [mechanism …] [overrides of train …]

This trains every mechanism by `attention-zoo train`, in its own process and its own folder under
`--runs`. It prints the errors of trainings that fail or are refused, and leaves them out.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from attention_zoo.tasks.run_folder import RunFolder
from attention_zoo.tasks.views.tables import Table, markdown_table, replace_section

# Representatives of each family.
MECHANISMS = [
    *("multi_head", "multi_query", "differential", "forgetting", "sliding_window"),
    *("top_k", "native_sparse", "linear", "taylor", "hedgehog"),
    *("retention", "gated_linear", "state_space_dual", "delta", "gated_delta"),
]
COLUMNS = ("attention", "accuracy", "exact match", "seconds", "decode state in bytes")


def train(name: str, run: RunFolder, overrides: list[str]) -> str | None:
    """Train a mechanism into a folder; return the error if the training fails."""
    command = [sys.executable, "-m", "attention_zoo", "train", "experiment=recall"]
    options = [f"attention={name}", f"hydra.run.dir='{run.path}'", "callbacks=minimal"]
    command += [*options, "logger=none", *overrides]
    process = subprocess.run(command, capture_output=True, text=True)
    return process.stderr.strip().rpartition("\n")[2] if process.returncode else None


def format_row(name: str, run: RunFolder) -> tuple[str, ...]:
    """Return a row of the table: the scores of a run and the size of the decode state."""
    results = run.read_results()
    scores = [f"{results[f'test/{score}']:.3f}" for score in ("accuracy", "exact_match")]
    state_bytes = results["decode_state_bytes"]
    state = "no cached decoding" if state_bytes is None else f"{state_bytes:,}"
    return (name, *scores, f"{results['seconds']:.0f}", state)


def format_caption(run: RunFolder) -> str:
    """Return how the table was made, from one of its runs."""
    config, machine = run.read_config(), run.read_results()["hardware"]
    source, model = config["data"]["source"], config["model"]
    processor = ", ".join(machine["gpus"]) or f"{machine['cpu']}, {machine['threads']} threads"
    return (
        f"{source['pairs']} pairs in {source['length']} tokens, vocabulary "
        f"{source['vocabulary']}; width {model['dim']}, {model['layers']} layers; "
        f"{config['trainer']['max_steps']} steps of {config['data']['batch_size']} sequences; "
        f"{processor}."
    )


def main() -> None:
    """Train the mechanisms, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="put the table between this file's marks")
    parser.add_argument("--runs", type=Path, default=Path("logs/recall"))
    parser.add_argument("names", nargs="*", help="mechanisms, and overrides of train")
    arguments = parser.parse_args()
    overrides = [argument for argument in arguments.names if "=" in argument]
    names = [argument for argument in arguments.names if "=" not in argument] or MECHANISMS
    rows, runs = [], []
    for number, name in enumerate(names, start=1):
        print(f"{number}/{len(names)} {name}", end=" ", flush=True)
        run = RunFolder((arguments.runs / name).resolve())
        error = train(name, run, overrides)
        if error is not None:
            print(error)
            continue
        rows.append(format_row(name, run))
        runs.append(run)
        cells = zip(COLUMNS[1:], rows[-1][1:], strict=True)
        print(*(f"{column} {cell}" for column, cell in cells), sep=", ")
    if not rows:
        sys.exit("No mechanism was trained, so there is no table.")
    rows.sort(key=lambda row: row[2:3] + row[1:2], reverse=True)
    table = markdown_table(Table("Recall", COLUMNS, rows), code_names=True)
    text = f"{table}\n\n{format_caption(runs[0])}"
    print(f"\n{text}")
    if arguments.output is not None:
        arguments.output.write_text(replace_section(arguments.output.read_text(), "recall", text))


if __name__ == "__main__":
    main()
