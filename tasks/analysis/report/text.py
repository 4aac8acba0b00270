"""A report as Markdown, as CSV, and on the console."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from attention_zoo.tasks.analysis.report.answer import answer, counted, how_tested
from attention_zoo.tasks.analysis.report.comparison import (
    Comparison,
    differing_keys,
    heading,
    rows_of,
)
from attention_zoo.tasks.analysis.report.conditions import conditions
from attention_zoo.tasks.analysis.report.page import signed, verdict
from attention_zoo.tasks.analysis.report.runs import Run, run_names
from attention_zoo.tasks.configuration.resolved_config import flatten

STATES = {True: "equal", False: "**not equal**", None: "unknown_name_message"}
# Of results.json, what is no scalar and would fill a cell with pages.
LONG = ("history", "lengths", "versions")
# What a terminal holds, and a narrow one.
SHOWN_COSTS = ("tokens_per_second", "parameters", "peak_memory_bytes")
NARROW = 100  # columns


def comparison_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: quality, its test, and cost."""
    first, *others = comparison.quality
    measures = [*others, *comparison.cost]
    columns = [
        heading(comparison),
        "seeds",
        first.title,
        "against the reference",
        *(x.title for x in measures),
    ]
    rows = [
        [
            row.label,
            str(len(row.runs)),
            first.spread(row.values(first.key)),
            difference(comparison, place),
            *(measure.spread(row.values(measure.key)) for measure in measures),
        ]
        for place, row in enumerate(comparison.rows)
    ]
    return columns, rows


def difference(comparison: Comparison, place: int) -> str:
    """Of a row, in the measure that decides: its amount, and what the test says."""
    found = verdict(comparison, place, comparison.primary_metric)
    if found is None:
        return "reference"
    amount = "" if found.amount is None else f"{signed(comparison.primary_metric, found.amount)} "
    return f"{amount}({found.told})"


def markdown(title: str, comparisons: Sequence[Comparison], runs: Sequence[Run]) -> str:
    """`report.md`."""
    parts = [f"# {escaped(title)}", f"{counted(runs)}."]
    for comparison in comparisons:
        parts += [f"## {escaped(comparison.title)}", *map(escaped, answer(comparison))]
        parts.append(markdown_table(*comparison_table(comparison)))
        if len(comparison.rows) > 1:
            parts.append(" ".join(map(escaped, how_tested(comparison))))
        told = [[x.name, STATES[x.equal], x.text] for x in conditions(comparison)]
        parts += ["### Conditions", markdown_table(["condition", "", "between the rows"], told)]
    lost = lost_jobs(runs)
    if lost:
        parts += ["## Jobs without a result"]
        parts.append(markdown_table(["job", "outcome", "reason"], lost))
    return "\n\n".join(parts) + "\n"


def lost_jobs(runs: Sequence[Run]) -> list[list[str]]:
    """Name, outcome and reason of those that have no result."""
    named = zip(runs, run_names(runs), strict=True)
    return [
        [name, run.outcome, run.short_reason] for run, name in named if run.outcome != "trained"
    ]


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[escaped(cell).replace("|", "\\|").replace("\n", " ") for cell in x] for x in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def escaped(text: str) -> str:
    """Without HTML, which Markdown would let through."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def csv_of(runs: Sequence[Run]) -> str:
    """`results.csv`: a run a line, with all that is one value, and with the options that differ."""
    differing = sorted(differing_keys(rows_of([run for run in runs if run.config])))
    lines: list[dict[str, Any]] = [
        {
            "folder": str(run.folder),
            "overrides": " ".join(run.overrides),
            "outcome": run.outcome,
            "reason": run.reason,
            **{f"config/{key}": run.options.get(key) for key in differing},
            "seed": run.seed,
            **dict(scalars(run)),
        }
        for run in runs
    ]
    out = io.StringIO()
    columns = list(dict.fromkeys(key for line in lines for key in line))
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def scalars(run: Run) -> Iterator[tuple[str, Any]]:
    """The figures of a run; what is NaN or infinite by that word."""
    broken = run.results.get("not_finite", {})
    for key, value in run.results.items():
        if key == "not_finite" or key in LONG:
            continue
        if isinstance(value, dict):
            for inner, leaf in flatten(value):
                yield f"{key}/{inner}", leaf
        elif isinstance(value, list):
            yield key, json.dumps(value)
        else:
            yield key, broken.get(key, value)


def show(console: Console, comparisons: Sequence[Comparison], runs: Sequence[Run]) -> None:
    """Print answers, tables, what is not equal, and jobs without a result."""
    for comparison in comparisons:
        first = comparison.primary_metric
        shown = SHOWN_COSTS if console.width >= NARROW else SHOWN_COSTS[:1]
        costs = [x for x in comparison.cost if x.key in shown]
        table = Table(title=comparison.title, title_justify="left", title_style="bold")
        # Without lines between columns, which narrow terminals have no room for.
        table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
        table.add_column(heading(comparison), overflow="fold")
        for title in ("n", first.title, "Δ", "test", *(x.title for x in costs)):
            table.add_column(title, justify="right", no_wrap=True)
        for place, row in enumerate(comparison.rows):
            found = verdict(comparison, place, first)
            amount = None if found is None else found.amount
            open_ = found is not None and not found.significant
            table.add_row(
                Text(row.label),
                str(len(row.runs)),
                first.spread(row.values(first.key)),
                *(
                    Text(text, style="dim" if open_ else "")
                    for text in (
                        "" if amount is None else signed(first, amount),
                        "reference" if found is None else found.told,
                    )
                ),
                *(x.text(row.mean(x.key)) for x in costs),
            )
        console.print(table)
        for sentence in answer(comparison):
            console.print(Text(sentence.replace("`", "")))
        for condition in conditions(comparison):
            if condition.equal is False:
                console.print(Text(f"  {condition.name}: {condition.text}".replace("`", "")))
        console.print()
    lost = lost_jobs(runs)
    if lost:
        table = Table("job", "outcome", "reason", title="Jobs without a result")
        table.title_justify, table.title_style = "left", "bold"
        for cells in lost:
            table.add_row(*(Text(cell, overflow="fold") for cell in cells))
        console.print(table)
    console.print(f"{counted(runs)}.", highlight=False)
