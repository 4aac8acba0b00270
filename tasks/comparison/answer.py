"""The answer of a comparison, on the console and as a page."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text

from attention_zoo.tasks.analysis.report.charts import draw_charts
from attention_zoo.tasks.analysis.report.comparison import Comparison, compare_runs
from attention_zoo.tasks.analysis.report.documents import (
    Finding,
    print_report,
    report_markdown,
    report_page,
)
from attention_zoo.tasks.analysis.report.report_run import log_report
from attention_zoo.tasks.analysis.report.runs import Run, find_runs
from attention_zoo.tasks.analysis.report.significance import run_tests
from attention_zoo.tasks.analysis.report.tables import csv_rows
from attention_zoo.tasks.comparison.candidate import Candidate
from attention_zoo.tasks.comparison.rate_charts import draw_rates
from attention_zoo.tasks.comparison.rates import NEARLY, TUNING_VARIANCE, good_range
from attention_zoo.tasks.comparison.scaling import (
    Size,
    describe_scaling,
    draw_scaling,
    scaling_table,
    size_of_runs,
)
from attention_zoo.tasks.comparison.scoreboard import add_results, write_page
from attention_zoo.tasks.comparison.settings import describe_option_trials
from attention_zoo.tasks.views.console import print_line
from attention_zoo.tasks.views.tables import Cell, Table, csv_text, print_table
from attention_zoo.tasks.wording import pluralize

CONFIRM = "confirm"  # the folder of the runs that the answer is about


def answer(
    folder: Path,
    candidates: Sequence[Candidate],
    schedule: Mapping[str, Any],
    config: DictConfig,
    console: Console,
) -> None:
    """Compare the runs that confirm the best settings; print the answer and write it into files.

    `schedule` is how all candidates were tuned and trained, for a scoreboard.
    """
    left_out = [f"`{x.label}` ({x.reason})" for x in candidates if x.cost is None]
    candidates = [x for x in candidates if x.cost is not None]
    runs = find_runs([folder / CONFIRM])
    comparisons = [*compare_widths(runs, candidates, config.reference)]
    sentences = [f"Left out: {'; '.join(left_out)}."] if left_out else []
    sentences += describe_tuning(candidates)
    options = {x.label: x.options_tried for x in candidates}
    sentences += describe_option_trials(options, schedule["option_trials"])
    tuning = Finding(
        sentences, tuning_table(candidates), draw_rates([x.trials for x in candidates])
    )
    scaling = find_scaling(runs, candidates)
    charts = [draw_charts(comparison) for comparison in comparisons]
    title = f"Comparison of {pluralize(len({x.name for x in candidates}), 'candidate')}"
    files = {
        "report.html": report_page(
            title, comparisons, charts, runs, [tuning, *scaling], command="compare"
        ),
        "report.md": report_markdown(title, comparisons, runs, [tuning, *scaling]),
        "results.csv": csv_text(csv_rows(runs)),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    for finding in (tuning, *scaling):
        print_table(console, finding.table)
        for sentence in finding.sentences:
            console.print(Text(sentence.replace("`", "")))
        console.print()
    print_report(console, comparisons, runs)
    for name in files:
        print_line(console, str(folder / name))
    if any((run.config.get("logger") or {}).get("wandb") for run in runs):
        page = files["report.html"]
        log_report(title, page, comparisons, charts, runs, folder, folder)
    if config.scoreboard is not None:
        choices = config.hydra.runtime.choices
        benchmark = config.benchmark or choices.get("experiment") or choices["data"]
        scoreboard = Path(config.scoreboard)
        for candidate in candidates:
            if trained := [x for x in runs_of(candidate, runs) if x.outcome == "trained"]:
                add_results(scoreboard, Path(benchmark).name, candidate, trained, schedule)
        print_line(console, str(write_page(scoreboard)))


def compare_widths(
    runs: Sequence[Run], candidates: Sequence[Candidate], reference: str | None
) -> Iterator[Comparison]:
    """Yield a comparison for each width, with its tests."""
    widths = dict.fromkeys(x.width for x in candidates)
    for width in widths:
        at_width = [x for x in candidates if x.width == width]
        of_width = [run for run in runs if any(runs_of(x, [run]) for x in at_width)]
        named = next((x for x in at_width if x.name == reference), None)
        for comparison in compare_runs(of_width, None):
            rows = [x for x in comparison.rows if named is not None and runs_of(named, x.runs)]
            if rows:  # None where it trains at no rate, which the table of rates says.
                comparison.reference, comparison.reference_given = rows[0], True
            if len(widths) > 1:
                comparison.title += f", width {width}"
            comparison.tuning_variance = TUNING_VARIANCE
            run_tests(comparison, lambda: None)
            yield comparison


def runs_of(candidate: Candidate, runs: Sequence[Run]) -> list[Run]:
    """Return the runs of a candidate."""
    options = {x for x in candidate.overrides if not x.startswith("seed=")}
    return [run for run in runs if options <= {*run.overrides}]


def find_scaling(runs: Sequence[Run], candidates: Sequence[Candidate]) -> list[Finding]:
    """Return what several widths show; nothing for one."""
    trained = [run for run in runs if run.outcome == "trained"]
    curves: dict[str, list[Size]] = {}
    for candidate in candidates:
        if of_candidate := runs_of(candidate, trained):
            curves.setdefault(candidate.name, []).append(size_of_runs(of_candidate))
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    if not curves:
        return []
    return [Finding([*describe_scaling(curves)], scaling_table(curves), draw_scaling(curves))]


def describe_tuning(candidates: Sequence[Candidate]) -> Iterator[str]:
    """Yield which candidates could not be tuned, and which take many rates."""
    if at_edge := [x for x in candidates if x.is_at_edge]:
        yield (
            f"Best at the edge of the rates that were tried, so not tuned: {quote_names(at_edge)}. "
            "Give a longer ladder (trials) or a wider one (rate_factor)."
        )
    if untrained := [x for x in candidates if x.best_rate is None]:
        yield f"No rate trains: {quote_names(untrained)}."
    ranges = {f"`{x.label}`": rate_range(x) for x in candidates if x.best_rate is not None}
    widths = {name: high / low for name, (low, high) in ranges.items()}
    if len({*widths.values()}) > 1:
        narrowest, widest = (
            f"{name} ({describe_range(ranges[name])})"
            for name in (min(widths, key=widths.__getitem__), max(widths, key=widths.__getitem__))
        )
        yield (
            f"Of the rates that come within {NEARLY} nats of the best in the first trials, "
            f"{narrowest} has the narrowest range and {widest} the widest."
        )


def quote_names(candidates: Sequence[Candidate]) -> str:
    """Return the names of candidates in backticks."""
    return ", ".join(f"`{x.label}`" for x in candidates)


def rate_range(candidate: Candidate) -> tuple[float, float]:
    """Return the range of rates that are nearly as good as the best of the first trials."""
    return good_range(candidate.rate_losses)


def describe_range(rates: tuple[float, float]) -> str:
    """Return "0.001 to 0.01"."""
    low, high = rates
    return f"{low:g} only" if low == high else f"{low:g} to {high:g}"


def tuning_table(candidates: Sequence[Candidate]) -> Table:
    """Return the best setting of each candidate, how good others are, and what was tried."""
    rows = []
    for candidate in candidates:
        best = candidate.best_setting
        state = Cell("at the edge: not tuned", style="bad")
        if best is None:
            state = Cell("no rate trains", style="bad")
        elif not candidate.is_at_edge:
            state = Cell("tuned", style="good")
        rates = candidate.rate_losses
        rows.append(
            [
                candidate.label,
                "–" if best is None else f"{best.rate:g}",
                "–" if best is None else best.option or "defaults",
                state,
                "–" if best is None else describe_range(rate_range(candidate)),
                describe_range((min(rates), max(rates))),
            ]
        )
    columns = ["candidate", "best rate", "options", "state", f"within {NEARLY} nats", "rates tried"]
    return Table("Learning rates and options", columns, rows, "lrllrr")
