"""The report as `report.html`: one file, which needs no network."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from attention_zoo.tasks.analysis.report import summary, tables
from attention_zoo.tasks.analysis.report.charts import draw_swatch
from attention_zoo.tasks.analysis.report.comparison import Comparison
from attention_zoo.tasks.analysis.report.runs import Run
from attention_zoo.tasks.views.pages import render_page


def report_page(
    title: str,
    comparisons: Sequence[Comparison],
    charts: Sequence[Mapping[str, Sequence[str]]],
    runs: Sequence[Run],
) -> str:
    """Return the page of comparisons, with the charts of each by kind, and of all runs."""
    return render_page(
        "analysis/report/page.html",
        title=title,
        date=f"{datetime.now():%Y-%m-%d %H:%M}",
        comparisons=comparisons,
        charts=charts,
        runs=runs,
        summary=summary,
        tables=tables,
        draw_swatch=draw_swatch,
    )
