"""`attention-zoo report FOLDER …`: compare runs, sweeps and benchmarks, with tests and charts."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from attention_zoo.errors import UserError
from attention_zoo.tasks.analysis.report.charts import draw_charts
from attention_zoo.tasks.analysis.report.comparison import Comparison, compare_runs
from attention_zoo.tasks.analysis.report.documents import print_report, report_markdown, report_page
from attention_zoo.tasks.analysis.report.report_run import log_report
from attention_zoo.tasks.analysis.report.runs import find_run_folders, find_runs
from attention_zoo.tasks.analysis.report.significance import count_tests, run_tests
from attention_zoo.tasks.analysis.report.tables import csv_rows
from attention_zoo.tasks.benchmark.answer import (
    benchmark_findings,
    benchmark_rows,
    print_benchmark,
)
from attention_zoo.tasks.benchmark.results import find_benchmarks
from attention_zoo.tasks.commands.arguments import parse_arguments
from attention_zoo.tasks.run_folder import refuse_unwritable
from attention_zoo.tasks.views.console import print_line
from attention_zoo.tasks.views.tables import csv_text

OPTIONS = {
    "baseline=LABEL": "The row to test against. Without it, the best one.",
    "output=FOLDER": "The folder for the files. Without it, the first FOLDER.",
    "logger=none": "wandb logs the report to W&B as well.",
}
LOGGERS = ("wandb", "none")


def run(arguments: list[str]) -> None:
    """Compare the runs in the folders; print the comparison and write it into files."""
    options, operands = parse_arguments("report", arguments, OPTIONS, operand="FOLDER")
    if (logger := options.get("logger", "none")) not in LOGGERS:
        raise UserError(f"logger must be one of {', '.join(LOGGERS)}, got {logger!r}.")
    folders = [Path(folder) for folder in operands]
    console = Console()
    found = {folder: find_benchmarks(folder) for folder in folders}
    benchmarks = {path: each for by_path in found.values() for path, each in by_path.items()}
    # A folder of benchmarks need not have runs.
    runs = find_runs([x for x in folders if not found[x] or any(find_run_folders(x))])
    comparisons = compare_runs(runs, options.get("baseline"))
    run_all_tests(comparisons, console)
    title = f"Report on {', '.join(folder.resolve().name for folder in folders)}"
    charts = list(map(draw_charts, comparisons))
    names = {path: path.name if len(benchmarks) > 1 else "" for path in benchmarks}
    findings = [
        x for path, each in benchmarks.items() for x in benchmark_findings(each, names[path])
    ]
    html = report_page(title, comparisons, charts, runs, findings, command="report")
    rows = [row for item in benchmarks.items() for row in benchmark_rows(*item)]
    files = {
        "report.html": html,
        "report.md": report_markdown(title, comparisons, runs, findings),
        "results.csv": csv_text([*csv_rows(runs), *rows]),
    }
    output = Path(options.get("output", folders[0]))
    with refuse_unwritable(output):
        output.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (output / name).write_text(text, encoding="utf-8")
    if runs:
        print_report(console, comparisons, runs)
    for benchmark in benchmarks.values():
        print_benchmark(console, benchmark)
    for name in files:
        print_line(console, str(output / name))
    if logger == "wandb":
        log_report(title, html, comparisons, charts, runs, folders[0], output)


def run_all_tests(comparisons: Sequence[Comparison], console: Console) -> None:
    """Run the tests of all comparisons; terminals show a bar, as bootstraps take time."""
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("testing", total=sum(map(count_tests, comparisons)))
        for comparison in comparisons:
            run_tests(comparison, lambda: progress.advance(bar))
