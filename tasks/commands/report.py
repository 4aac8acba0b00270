"""`attention-zoo report DIR…`: what runs and sweeps came to, compared, tested, and drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attention_zoo.errors import UserError
from attention_zoo.tasks.analysis.report.comparison import (
    Comparison,
    compare,
    count_tests,
    run_tests,
)
from attention_zoo.tasks.analysis.report.page import page, panels
from attention_zoo.tasks.analysis.report.runs import Run, find_runs
from attention_zoo.tasks.analysis.report.text import comparison_table, csv_of, markdown, show
from attention_zoo.tasks.commands.arguments import parse_arguments
from attention_zoo.tasks.views.pages import document

OPTIONS = {
    "baseline=LABEL": "The row to test against. Without it, the best one.",
    "output=FOLDER": "The folder for the files. Without it, the first FOLDER.",
    "logger=none": "wandb shows the report in W&B as well.",
}
LOGGERS = ("wandb", "none")
PROJECT = "attention-zoo"  # in W&B, where the runs were not written down there


def run(arguments: list[str]) -> None:
    from rich.console import Console

    options, operands = parse_arguments("report", arguments, OPTIONS, operand="FOLDER")
    if (logger := options.get("logger", "none")) not in LOGGERS:
        raise UserError(f"logger must be one of {', '.join(LOGGERS)}, got {logger!r}.")
    folders = [Path(folder) for folder in operands]
    console = Console()
    runs = find_runs(folders)
    comparisons = compare(runs, options.get("baseline"))
    into = Path(options.get("output", folders[0]))
    test(comparisons, console)
    title = f"Report on {', '.join(folder.resolve().name for folder in folders)}"
    html = page(title, comparisons, runs)
    paths = write(
        into,
        {
            "report.html": html,
            "report.md": markdown(title, comparisons, runs),
            "results.csv": csv_of(runs),
        },
    )
    show(console, comparisons, runs)
    for path in paths:
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)
    if logger == "wandb":
        log(title, html, comparisons, runs, folders[0], into)


def test(comparisons: Sequence[Comparison], console: Any) -> None:
    """Run all tests; a bar shows in a terminal, as bootstraps take time."""
    from rich.progress import Progress

    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("testing", total=sum(map(count_tests, comparisons)))
        for comparison in comparisons:
            run_tests(comparison, lambda: progress.advance(bar))


def write(folder: Path, texts: dict[str, str]) -> list[Path]:
    """Write the files; raises UserError where the folder cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to ({error.strerror}); name another: output=FOLDER."
        ) from error
    return [folder / name for name in texts]


def log(
    title: str,
    html: str,
    comparisons: Sequence[Comparison],
    runs: Sequence[Run],
    sweep: Path,
    folder: Path,
) -> None:
    """The report as a run of W&B, in the project and group of the runs."""
    from attention_zoo.tasks.training.loggers.loggers import (
        finish_loggers,
        log_html,
        log_summary,
        log_table,
    )
    from attention_zoo.tasks.training.loggers.wandb_runs import create_wandb_logger

    nodes = [(run.config.get("logger") or {}).get("wandb") for run in runs]
    node: dict[str, Any] = next((node for node in nodes if node), {"project": PROJECT})
    place: dict[str, Any] = {key: node[key] for key in ("project", "entity") if node.get(key)}
    logger = create_wandb_logger(
        **place,
        group=node.get("group") or sweep.resolve().name,
        # A folder of its own: the run in W&B of a run's folder is that of its training.
        save_dir=folder / "report",
        name=title,
        job_type="report",
        tags=["report"],
    )
    exit_code = 1
    try:
        log_html([logger], "report", html, 0)
        for number, comparison in enumerate(comparisons):
            above = f"{comparison.title}/" if len(comparisons) > 1 else ""
            log_table([logger], f"{above}table", *comparison_table(comparison), 0)
            kinds: dict[str, str] = {}
            for kind, svg in panels(comparison, f"w{number}"):
                kinds[kind] = kinds.get(kind, "") + f"<figure>{svg}</figure>"
            for kind, figures in kinds.items():
                shown = f'<section class="comparison plots">{figures}</section>'
                log_html(
                    [logger],
                    f"{above}{kind}",
                    document(kind, shown, of="analysis/report"),
                    0,
                )
            best = {f"{above}best/{x.key}": comparison.best.mean(x.key) for x in comparison.quality}
            log_summary([logger], {f"{above}best": comparison.best.label, **best})
        exit_code = 0
    finally:
        finish_loggers([logger], exit_code)
