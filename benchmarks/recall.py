"""Which mechanisms can look things up: a table of `experiment=recall`, a training each.

    python benchmarks/recall.py [--output README.md] [mechanism …] [overrides of train …]

Every mechanism is trained by `attention-zoo train`, as a process of its own, in a folder under
`--runs`. What is refused, or fails, is said and left out.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from attention_zoo.tasks.training.checkpoints import read_checkpoint
from attention_zoo.tasks.views.tables import Table, markdown_table, replace_section

# Of each family, what tells it apart.
MECHANISMS = [
    *("multi_head", "multi_query", "differential", "forgetting", "sliding_window"),
    *("top_k", "native_sparse", "linear", "taylor", "hedgehog"),
    *("retention", "gated_linear", "state_space_dual", "delta", "gated_delta"),
]
COLUMNS = ("attention", "accuracy", "exact match", "seconds", "decode state in bytes")


def train(name: str, run: Path, overrides: list[str]) -> str | None:
    """Train a mechanism into a folder; what went wrong, if something did."""
    command = [sys.executable, "-m", "attention_zoo", "train", "experiment=recall"]
    options = [f"attention={name}", f"hydra.run.dir='{run}'", "callbacks=minimal", "logger=none"]
    done = subprocess.run([*command, *options, *overrides], capture_output=True, text=True)
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else None


def row_of(name: str, run: Path) -> tuple[str, ...]:
    """A line of the table: the scores of a run, and what its model keeps to decode."""
    results = read_results(run)
    scores = [f"{results[f'test/{score}']:.3f}" for score in ("accuracy", "exact_match")]
    kept = results["decode_state_bytes"]
    state = "no cached decoding" if kept is None else f"{kept:,}"
    return (name, *scores, f"{results['seconds']:.0f}", state)


def read_results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def caption(run: Path) -> str:
    """How the table was made, out of one of its runs."""
    config = read_checkpoint(run / "checkpoints" / "best.ckpt")["attention_zoo"]["config"]
    data, model = config["data"], config["model"]
    machine = read_results(run)["hardware"]
    processor = ", ".join(machine["gpus"]) or f"{machine['cpu']}, {machine['threads']} threads"
    return (
        f"{data['source']['pairs']} pairs in {data['source']['length']} tokens, vocabulary "
        f"{data['source']['vocabulary']}; width {model['dim']}, {model['layers']} layers; "
        f"{config['trainer']['max_steps']} steps of {data['batch_size']} sequences; {processor}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="put the table between this file's marks")
    parser.add_argument("--runs", type=Path, default=Path("logs/recall"))
    parser.add_argument("names", nargs="*", help="mechanisms, and overrides of train")
    arguments = parser.parse_args()
    overrides = [word for word in arguments.names if "=" in word]
    names = [word for word in arguments.names if "=" not in word] or MECHANISMS
    rows, runs = [], []
    for number, name in enumerate(names, start=1):
        print(f"{number}/{len(names)} {name}", end=" ", flush=True)
        run = (arguments.runs / name).resolve()
        wrong = train(name, run, overrides)
        if wrong is not None:
            print(wrong)
            continue
        rows.append(row_of(name, run))
        runs.append(run)
        told = zip(COLUMNS[1:], rows[-1][1:], strict=True)
        print(*(f"{word} {figure}" for word, figure in told), sep=", ")
    if not rows:
        sys.exit("No mechanism was trained: there is no table to make.")
    rows.sort(key=lambda row: row[2:3] + row[1:2], reverse=True)
    table = markdown_table(Table("Recall", COLUMNS, rows), code_names=True)
    text = f"{table}\n\n{caption(runs[0])}"
    print(f"\n{text}")
    if arguments.output is not None:
        arguments.output.write_text(replace_section(arguments.output.read_text(), "recall", text))


if __name__ == "__main__":
    main()
