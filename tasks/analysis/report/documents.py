"""A report as a page, as Markdown, and on the console."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup
from rich.console import Console
from rich.text import Text

from attention_zoo.tasks.analysis.report import summary, tables
from attention_zoo.tasks.analysis.report.charts import draw_swatch
from attention_zoo.tasks.analysis.report.comparison import Comparison
from attention_zoo.tasks.analysis.report.conditions import find_conditions
from attention_zoo.tasks.analysis.report.runs import Run
from attention_zoo.tasks.views.pages import render_page
from attention_zoo.tasks.views.tables import (
    WIDE,
    Table,
    escape_markdown,
    markdown_table,
    print_table,
)

# The costs that a wide console shows; a narrow one shows the first.
CONSOLE_COSTS = ("tokens_per_second", "parameters", "peak_memory_bytes")


@dataclass(frozen=True)
class Finding:
    """What else a report has: sentences, a table whose title is the heading, and a chart."""

    sentences: Sequence[str]
    table: Table
    chart: Markup


def report_page(
    title: str,
    comparisons: Sequence[Comparison],
    charts: Sequence[Mapping[str, Sequence[str]]],
    runs: Sequence[Run],
    findings: Sequence[Finding] = (),
    *,
    command: str,
) -> str:
    """Return `report.html`, one file that needs no network, made by a command.

    `charts` are by kind.
    """
    return render_page(
        "analysis/report/page.html",
        title=title,
        command=command,
        date=f"{datetime.now():%Y-%m-%d %H:%M}",
        comparisons=comparisons,
        charts=charts,
        runs=runs,
        summary=summary,
        tables=tables,
        draw_swatch=draw_swatch,
        findings=findings,
    )


def report_markdown(
    title: str,
    comparisons: Sequence[Comparison],
    runs: Sequence[Run],
    findings: Sequence[Finding] = (),
) -> str:
    """Return `report.md`."""
    parts = [f"# {escape_markdown(title)}"]
    parts += [f"{summary.count_outcomes(runs)}."] if runs else []
    for comparison in comparisons:
        parts.append(f"## {escape_markdown(comparison.title)}")
        parts += map(escape_markdown, summary.summarize(comparison))
        parts.append(markdown_table(tables.comparison_table(comparison)))
        if len(comparison.rows) > 1:
            parts.append(" ".join(map(escape_markdown, summary.describe_tests(comparison))))
        parts += ["### Conditions", markdown_table(tables.conditions_table(comparison))]
    for finding in findings:
        parts += [f"## {finding.table.title}", *map(escape_markdown, finding.sentences)]
        parts.append(markdown_table(finding.table))
    failures = tables.failures_table(runs)
    if failures.rows:
        parts += [f"## {failures.title}", markdown_table(failures)]
    return "\n\n".join(parts) + "\n"


def print_report(console: Console, comparisons: Sequence[Comparison], runs: Sequence[Run]) -> None:
    """Print tables, summaries, unequal conditions, and the jobs without a result."""
    costs = CONSOLE_COSTS if console.width >= WIDE else CONSOLE_COSTS[:1]
    for comparison in comparisons:
        table = tables.comparison_table(comparison)
        shown = [x for x in comparison.cost if x.key in costs]
        columns = [*table.columns[:4], *(x.title for x in shown)]
        rows = [
            [*cells[:4], *(x.format(row.mean(x.key)) for x in shown)]
            for row, cells in zip(comparison.rows, table.rows, strict=True)
        ]
        print_table(console, Table(table.title, columns, rows))
        for sentence in summary.summarize(comparison):
            console.print(Text(sentence.replace("`", "")))
        for sentence in summary.describe_correction(comparison):
            console.print(Text(sentence))
        for condition in find_conditions(comparison):
            if condition.equal is False:
                console.print(Text(f"  {condition.name}: {condition.text}".replace("`", "")))
        console.print()
    failures = tables.failures_table(runs)
    if failures.rows:
        print_table(console, failures)
    console.print(f"{summary.count_outcomes(runs)}.", highlight=False)
