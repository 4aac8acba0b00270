"""The report as `report.html`: one file, which needs no network."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from attention_zoo.tasks.analysis.report.charts import Chart, draw_swatch
from attention_zoo.tasks.analysis.report.comparison import Comparison
from attention_zoo.tasks.analysis.report.runs import Run
from attention_zoo.tasks.analysis.report.summary import count_outcomes, describe_tests, summarize
from attention_zoo.tasks.analysis.report.tables import (
    comparison_table,
    conditions_table,
    differences_table,
    failures_table,
    jobs_table,
    length_tables,
)
from attention_zoo.tasks.views.pages import render_page


def report_page(
    title: str,
    comparisons: Sequence[Comparison],
    charts: Sequence[Sequence[Chart]],
    runs: Sequence[Run],
) -> str:
    """Return the page of a report.

    Args:
        title: its title.
        comparisons: with their tests.
        charts: those of each comparison.
        runs: all runs, trained or not.
    """
    return render_page(
        "analysis/report/page.html",
        title=title,
        counts=count_outcomes(runs),
        date=f"{datetime.now():%Y-%m-%d %H:%M}",
        comparisons=list(map(page_values, comparisons, charts)),
        failures=failures_table(runs),
        jobs=jobs_table(comparisons, runs),
    )


def page_values(comparison: Comparison, charts: Sequence[Chart]) -> dict[str, Any]:
    """Return what the template shows of a comparison."""
    return {
        "title": comparison.title,
        "labels": [row.label for row in comparison.rows],
        "swatches": [draw_swatch(index) for index in range(len(comparison.rows))],
        "summary": list(summarize(comparison)),
        "results": comparison_table(comparison),
        "differences": differences_table(comparison) if len(comparison.rows) > 1 else None,
        "tests": list(describe_tests(comparison)),
        "conditions": conditions_table(comparison),
        "charts": [chart.svg for chart in charts],
        "lengths": list(length_tables(comparison)),
    }


def charts_page(title: str, charts: Sequence[Chart]) -> str:
    """Return a page of charts only."""
    svg = [chart.svg for chart in charts]
    return render_page("analysis/report/charts.html", title=title, charts=svg)
