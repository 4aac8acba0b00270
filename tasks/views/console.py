"""What the commands print: configs, metrics, samples, paths and commands to copy."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from attention_zoo.tasks.configuration.resolved_config import choice_name
from attention_zoo.tasks.run_folder import to_number
from attention_zoo.tasks.views.tables import Table, print_table
from attention_zoo.tasks.wording import pluralize


def print_line(console: Console, line: str | Text) -> None:
    """Print a line without wrapping it, so that it can be copied as one line."""
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def print_run_summary(
    console: Console,
    metrics: Mapping[str, Any],
    manifest: Mapping[str, Any],
    paths: Mapping[str, str | Path],
    next_commands: Sequence[str],
) -> None:
    """Print the summary of a run: metrics, costs, paths by label, and commands to try next."""
    print_metrics(console, metrics)
    minutes, seconds = divmod(round(manifest["seconds"]), 60)
    facts = (
        f"{manifest['parameters']:,} parameters",
        f"{manifest['tokens_seen']:,} tokens seen",
        f"{pluralize(manifest['steps'], 'step')}, ended by {manifest['ended']}",
        f"{minutes} min {seconds} s" if minutes else f"{seconds} s",
        f"seed {manifest['seed']}",
        str(manifest["precision"]),
    )
    console.print(", ".join(facts), highlight=False, markup=False)
    print_paths(console, paths)
    if next_commands:
        console.print()
        console.print(Text("Next, try", style="bold"))
        for command in next_commands:
            print_line(console, Text(f"  {command}", style="cyan"))


def print_metrics(console: Console, metrics: Mapping[str, Any]) -> None:
    """Print a table of metrics."""
    rows = [(name, format_metric(to_number(value))) for name, value in metrics.items()]
    print_table(console, Table("Results", ["metric", "value"], rows))


def print_paths(console: Console, paths: Mapping[str, str | Path]) -> None:
    """Print a label and a path on each line."""
    console.print()
    width = max(map(len, paths), default=0)
    for label, path in paths.items():
        print_line(console, Text.assemble((f"{label:<{width}}", "bold"), "  ", str(path)))


def print_samples(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of what the model wrote."""
    print_table(console, Table("Samples", columns, rows, "l" * len(columns)))


def print_data_report(console: Console, report: Mapping[str, Any]) -> None:
    """Print what the data module read and left out: a line for each split, notes, warnings."""
    order = ("train", "valid", "test")  # and test@128, a test at another length
    splits = [name for split in order for name in report if name.partition("@")[0] == split]
    width = max(map(len, splits))
    for split in splits:
        counts = report[split]
        facts = ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in counts.items() if n)
        print_line(console, f"{split:<{width}}  {facts}")
    if "chance_accuracy" in report:
        print_line(console, f"chance  accuracy {format_metric(report['chance_accuracy'])}")
    for note in report["notes"]:
        print_line(console, f"note   {note}")
    for warning in report["warnings"]:
        print_line(console, f"warning  {warning}")


def print_config_tree(console: Console, config: Mapping[str, Any]) -> None:
    """Print a resolved config as a tree: a branch for each group, with its choice and values."""
    tree = Tree(Text("config", style="bold"), guide_style="dim")
    console.print(add_branches(tree, config))


def add_branches(tree: Tree, node: Mapping[str, Any]) -> Tree:
    """Add the values of a config node to a tree, and a branch for each of its nodes."""
    values = Text()
    for key, value in node.items():
        # The title of the branch has name and _target_; _partial_ and the like are Hydra's.
        if not isinstance(value, Mapping) and key != "name" and not key.startswith("_"):
            values.append(" " if values else "").append(f"{key}=", "dim")
            values.append(format_override(value))
    if values:
        tree.add(values)
    for key, value in node.items():
        if isinstance(value, Mapping):
            title = Text(key, style="bold")
            if choice := choice_name(value):
                title.append(f" {choice}", style="cyan")
            add_branches(tree.add(title), value)
    return tree


def format_override(value: Any) -> str:
    """Return a value as an override on the command line writes it."""
    if isinstance(value, list):
        return f"[{','.join(map(format_override, value))}]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = str(value)
    return repr(text) if set(text) & set(" ,") else text


def format_metric(value: float) -> str:
    """Return a number with as many digits as are worth reading."""
    if isinstance(value, int):
        return f"{value:,}"
    if value and abs(value) < 0.001:
        return f"{value:.3g}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}"
