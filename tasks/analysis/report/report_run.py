"""A report as a run of W&B, beside the runs that it is about."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attention_zoo.tasks.analysis.report.comparison import Comparison
from attention_zoo.tasks.analysis.report.runs import Run
from attention_zoo.tasks.analysis.report.tables import comparison_table
from attention_zoo.tasks.views.pages import render_page


def log_report(
    title: str,
    html: str,
    comparisons: Sequence[Comparison],
    charts: Sequence[Mapping[str, Sequence[str]]],
    runs: Sequence[Run],
    sweep: Path,
    output: Path,
) -> None:
    """Log the report as a run of W&B, in the project and group of the runs."""
    from attention_zoo.tasks.training.loggers import loggers
    from attention_zoo.tasks.training.loggers.wandb_runs import create_wandb_logger

    configs = [(run.config.get("logger") or {}).get("wandb") for run in runs]
    # The project has this name if the runs were not logged to W&B.
    config: dict[str, Any] = next(filter(None, configs), {"project": "attention-zoo"})
    options = {key: config[key] for key in ("project", "entity") if config.get(key)}
    options |= {"name": title, "group": config.get("group") or sweep.resolve().name}
    # The W&B run of a run's own folder is that of its training.
    folder = output / "report"
    logger = create_wandb_logger(save_dir=folder, job_type="report", tags=["report"], **options)
    exit_code = 1
    try:
        loggers.log_html([logger], "report", html, 0)
        for comparison, drawn in zip(comparisons, charts, strict=True):
            prefix = f"{comparison.title}/" if len(comparisons) > 1 else ""
            table = comparison_table(comparison)
            rows = [[str(cell) for cell in row] for row in table.rows]
            loggers.log_table([logger], f"{prefix}table", table.columns, rows, 0)
            for kind, charts_of_kind in drawn.items():
                page = render_page("analysis/report/charts.html", title=kind, charts=charts_of_kind)
                loggers.log_html([logger], f"{prefix}{kind}", page, 0)
            best = comparison.best
            means = {f"{prefix}best/{x.key}": best.mean(x.key) for x in comparison.quality}
            loggers.log_summary([logger], {f"{prefix}best": best.label, **means})
        exit_code = 0
    finally:
        loggers.finish_loggers([logger], exit_code)
