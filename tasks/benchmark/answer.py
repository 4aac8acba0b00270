"""What a benchmark prints and writes: tables, a picture, a page, and findings for a report."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from rich.console import Console
from rich.text import Text

from attention_zoo.errors import UserError
from attention_zoo.tasks.analysis.report.charts import new_chart, row_style
from attention_zoo.tasks.analysis.report.documents import Finding
from attention_zoo.tasks.analysis.report.measures import Measure
from attention_zoo.tasks.benchmark.results import FORWARD, KEY, MEMORY, STEP, Benchmark
from attention_zoo.tasks.run_folder import (
    RunFolder,
    first_sentence,
    refuse_unwritable,
    relative_to_cwd,
)
from attention_zoo.tasks.training.manifest import collect_environment
from attention_zoo.tasks.views.charts import (
    figure_svg,
    series_style,
    set_length_axis,
    style_axes,
    svg_settings,
)
from attention_zoo.tasks.views.console import print_line, print_paths
from attention_zoo.tasks.views.figures.style import new_figure
from attention_zoo.tasks.views.tables import Cell, Table, markdown_table, print_table
from attention_zoo.tasks.wording import pluralize

GROWTH = (FORWARD, STEP, MEMORY)  # the measures whose exponents are shown
DRAWN = (STEP, MEMORY)
PICTURE = "benchmark.png"
LINEAR = "t"  # the cost on the cards of mechanisms whose time grows linearly
LEGEND_ROWS = 24


def answer(benchmark: Benchmark, folder: Path, page: str | None, console: Console) -> None:
    """Print the tables, and write `results.json`, the picture, and the page if it is wanted."""
    run = RunFolder(folder)
    paths = {"results": run.results_file, "picture": folder / PICTURE}
    with refuse_unwritable(folder, option="hydra.sweep.dir"):
        run.write_results({}, {KEY: benchmark.to_json()} | collect_environment())
        draw_benchmark(benchmark).savefig(folder / PICTURE, dpi=150)
    if page is not None:
        paths["page"] = Path(page)
        with refuse_unwritable(paths["page"], "FILE"):
            paths["page"].write_text(benchmark_page(benchmark), encoding="utf-8")
    print_benchmark(console, benchmark)
    print_paths(console, {name: relative_to_cwd(path) for name, path in paths.items()})


def check_exponents(benchmark: Benchmark, limit: float | None) -> None:
    """Raise UserError for entries whose cards say linear and whose time grows faster."""
    if limit is None:
        return
    exponents = {x.label: x.exponent(STEP) or 0.0 for x in benchmark.entries if x.cost == LINEAR}
    above = [f"{label} ({x:.2f})" for label, x in exponents.items() if x > limit]
    if above:
        raise UserError(
            f"time must grow with an exponent of at most {limit:g} in entries whose cards call it "
            f"linear, got {', '.join(above)}. Measure again with more rounds, or correct the cards."
        )


def measure_table(benchmark: Benchmark, measure: Measure) -> Table:
    """Return the values of a measure: a row for each entry, a column for each length."""
    has_exponent = measure in GROWTH and len(benchmark.lengths) > 1
    columns = ["entry", *(f"{length:,}" for length in benchmark.lengths)]
    columns += ["exponent", "card"] if has_exponent else []
    rows = []
    for entry in benchmark.entries:
        values = entry.values.get(measure.key, {})
        numbers = [values.get(x) for x in benchmark.lengths]
        row = [entry.label, *(Cell(measure.format(x), x) for x in numbers)]
        if has_exponent:
            exponent = entry.exponent(measure)
            row += [Cell("–" if exponent is None else f"{exponent:.2f}", exponent), entry.cost]
        rows.append(row)
    return Table(measure.title, columns, rows)


def describe_missing(benchmark: Benchmark) -> Iterator[str]:
    """Yield why entries are left out, and why values of others are missing."""
    for label, reason in benchmark.refused.items():
        yield f"`{label}` is left out: {first_sentence(reason)}."
    for entry in benchmark.entries:
        for what, reason in entry.reasons.items():
            yield f"`{entry.label}` has no values of {what}: {reason}"


def describe_measures(benchmark: Benchmark) -> list[str]:
    """Return how the values were measured, in sentences."""
    sentences = [
        benchmark.describe(),
        "The step is that of training without its optimizer: a forward pass, the loss and a "
        "backward pass. Its peak memory is that of all tensors: weights, gradients, activations. "
        "Its FLOPs are those of all matrix products and convolutions.",
    ]
    if len(benchmark.entries) > 1:
        sentences.append("A ratio is that of two times of the same round.")
    if benchmark.decode_batch_sizes:
        tokens = pluralize(benchmark.decode_tokens, "token")
        sentences.append(f"Decoding is greedy, with a cache, of the last {tokens} of each length.")
    if len(benchmark.lengths) > 1:
        sentences.append(
            "An exponent is the slope of log value over log length: 1 is linear, 2 quadratic. "
            "The card says how the time of the attention alone grows with the length t."
        )
    return sentences


def print_benchmark(console: Console, benchmark: Benchmark) -> None:
    """Print the tables, and what is missing in them."""
    for measure in benchmark.measures:
        # A title of the table would be wrapped at its width.
        print_line(console, Text(measure.title, style="bold"))
        print_table(console, replace(measure_table(benchmark, measure), title=""))
    for sentence in [*describe_measures(benchmark), *describe_missing(benchmark)]:
        print_line(console, sentence.replace("`", ""))


def benchmark_page(benchmark: Benchmark) -> str:
    """Return the tables as a page of Markdown, with the command that made them."""
    parts = ["# Costs by length", *describe_measures(benchmark), "This command makes the page:"]
    parts.append(f"```console\n{benchmark.command}\n```")
    for measure in benchmark.measures:
        parts.append(f"## {measure.title}")
        parts.append(markdown_table(measure_table(benchmark, measure), code_names=True))
    missing = list(describe_missing(benchmark))
    parts += ["## What is missing", *(f"- {x}" for x in missing)] if missing else []
    return "\n\n".join(parts) + "\n"


def benchmark_findings(benchmark: Benchmark, name: str = "") -> list[Finding]:
    """Return the tables and charts for a report; `name` is in all titles, of several benchmarks."""
    sentences = [*describe_measures(benchmark), *describe_missing(benchmark)]
    findings = []
    for number, measure in enumerate(benchmark.measures):
        chart = Markup("")
        if measure in DRAWN:
            with svg_settings():
                figure, axes = new_chart(measure.title, 4.2)
                draw_measure(axes, benchmark, measure, row_style)
                chart = figure_svg(figure, measure.title, [x.label for x in benchmark.entries])
        table = measure_table(benchmark, measure)
        if name:
            table = replace(table, title=f"{name}: {table.title}")
        findings.append(Finding(sentences if number == 0 else [], table, chart))
    return findings


def benchmark_rows(folder: Path, benchmark: Benchmark) -> list[dict[str, Any]]:
    """Return a row of values for each entry and length, for a report's CSV."""
    return [
        {
            "folder": str(folder),
            "entry": entry.label,
            "length": length,
            **{key: x[length] for key, x in entry.values.items() if length in x},
        }
        for entry in benchmark.entries
        for length in benchmark.lengths
    ]


def draw_benchmark(benchmark: Benchmark) -> Figure:
    """Draw time and memory by length, with a line for each entry."""
    measures = [x for x in DRAWN if x in benchmark.measures]
    count = len(benchmark.entries)
    columns = -(-count // LEGEND_ROWS)
    figure = new_figure(
        4.6 * len(measures) + 2.2 * columns, max(4.4, 0.21 * min(count, LEGEND_ROWS))
    )
    all_axes = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, measure in zip(all_axes, measures, strict=True):
        style_axes(axes)
        draw_measure(axes, benchmark, measure, series_style)
        axes.set_title(measure.title, loc="left", fontsize=11, fontweight="bold")
    handles, names = all_axes[0].get_legend_handles_labels()
    options: dict[str, Any] = {"frameon": False, "ncols": columns, "fontsize": 9}
    figure.legend(handles, names, loc="outside right center", **options)
    return figure


def draw_measure(
    axes: Axes, benchmark: Benchmark, measure: Measure, style: Callable[[int], dict[str, Any]]
) -> None:
    """Draw a measure by length on logarithmic axes, with a line for each entry."""
    for index, entry in enumerate(benchmark.entries):
        values = entry.values.get(measure.key, {})
        axes.plot([*values], [*values.values()], **style(index) | {"label": entry.label})
    if measure.number_format == "bytes":
        axes.set_yscale("log", base=2)
    else:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: measure.format(value)))
    axes.yaxis.set_minor_locator(NullLocator())
    set_length_axis(axes, benchmark.lengths, set())
    axes.set_xlabel("length in tokens")
