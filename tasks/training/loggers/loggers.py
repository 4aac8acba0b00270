"""Loggers of the config, and what a run logs besides metrics: pictures, tables, artifacts.

Only this module tells the loggers apart: the rest of the code hands `trainer.loggers` to these
functions. A logger that cannot take something is passed over.
"""

import csv
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import (
    CometLogger,
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from attention_zoo.errors import UserError, check_not_negative
from attention_zoo.tasks.configuration.build import instantiate
from attention_zoo.tasks.run_folder import RunFolder, going_on_without
from attention_zoo.tasks.training.loggers.file_loggers import (
    WholeRowsWriter,
    survive_full_disk,
    tolerate_write_errors,
)
from attention_zoo.tasks.training.loggers.wandb_runs import (
    RunLogger,
    create_wandb_logger,
    finish_run,
    log_wandb_table,
    wandb_options,
)
from attention_zoo.tasks.views.tables import Table, markdown_table

# Of the loggers that have one, any of these does.
PACKAGES = {"TensorBoardLogger": ("tensorboard", "tensorboardX"), "create_wandb": ("wandb",)}

# Options of loggers that their packages accept below 0, and then wait or write as they like.
NOT_NEGATIVE = ("init_timeout", "finish_timeout", "flush_secs", "max_queue")


def check_loggers(config: Mapping[str, Any]) -> None:
    """Raise UserError for a logger whose package is not installed, or times that are negative."""
    for name, node in (config["logger"] or {}).items():
        packages = next(
            (x for kind, x in PACKAGES.items() if node and kind in node["_target_"]), ()
        )
        if packages and not any(map(find_spec, packages)):
            raise UserError(missing_package_message(name))
        numbers = {f"logger.{name}.{x}": (node or {}).get(x, 0) for x in NOT_NEGATIVE}
        check_not_negative(**numbers)


def missing_package_message(name: str) -> str:
    """Return the sentence for a logger whose package is not installed."""
    return (
        f"logger={name} needs a package that is not installed; "
        f"pip install 'attention-zoo[{name}]', or choose logger=csv or logger=none."
    )


def create_loggers(
    config: Mapping[str, Any],
    *,
    job_type: str,
    resumed: Path | None = None,
    resumed_step: int = 0,
) -> list[Logger]:
    """Build the loggers of the config group `logger`, as `Trainer(logger=…)` takes them.

    Args:
        config: the whole config, in plain containers; its `logger` is None for no logger.
        job_type: the command.
        resumed: the checkpoint of a run that goes on; its run in W&B goes on too.
        resumed_step: the step of that checkpoint.

    Raises:
        UserError: a logger's package is not installed, or an option is refused.
    """
    loggers = []
    for name, node in (config["logger"] or {}).items():
        if node is None:
            continue
        options: dict[str, Any] = {}
        if node["_target_"].endswith(create_wandb_logger.__name__):
            options = wandb_options(config, node, job_type)
            if resumed is not None:
                id_file = RunFolder.of_checkpoint(resumed).wandb_id_file
                options |= {"id": id_file.read_text().strip()} if id_file.exists() else {}
        try:
            logger = instantiate(node, **options, _convert_="all")
        except ModuleNotFoundError:
            raise UserError(missing_package_message(name)) from None
        if isinstance(logger, CSVLogger) and resumed is not None:
            keep_logged_rows(logger, resumed_step)
        if isinstance(logger, CSVLogger | TensorBoardLogger):
            survive_full_disk(logger)
        loggers.append(logger)
    return loggers


@rank_zero_only
def keep_logged_rows(logger: CSVLogger, step: int) -> None:
    """Keep the rows before a step of a CSV file that a run goes on in: Lightning deletes them."""
    path = Path(logger.log_dir, ExperimentWriter.NAME_METRICS_FILE)
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        rows: list[Any] = [{k: x for k, x in row.items() if x} for row in csv.DictReader(file)]
    rows = [row for row in rows if int(row["step"]) < step]  # Later steps are made again.
    with warnings.catch_warnings(action="ignore"):  # that it deletes them
        logger._experiment = WholeRowsWriter(logger.log_dir)
    logger._experiment.metrics = rows
    logger.save()


@rank_zero_only
def log_image(loggers: Iterable[Logger], key: str, image: Path, step: int) -> None:
    """Log an image file: W&B, TensorBoard, MLflow, Comet."""
    picture = Image.open(image).convert("RGB")
    for logger in loggers:
        match logger:
            case WandbLogger():
                logger.log_image(key, [picture], step)
            case TensorBoardLogger():
                with tolerate_write_errors(logger):
                    logger.experiment.add_image(key, np.asarray(picture), step, dataformats="HWC")
            case MLFlowLogger():
                logger.experiment.log_image(logger.run_id, picture, key=key, step=step)
            case CometLogger():
                logger.experiment.log_image(picture, name=key, step=step)


@rank_zero_only
def log_table(
    loggers: Iterable[Logger],
    key: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    step: int,
) -> None:
    """Log a table: W&B, and TensorBoard as Markdown."""
    for logger in loggers:
        match logger:
            case WandbLogger():
                log_wandb_table(logger, key, columns, rows, step)
            case TensorBoardLogger():
                text = markdown_table(Table("", columns, rows))
                with tolerate_write_errors(logger):
                    logger.experiment.add_text(key, text, step)


@rank_zero_only
def log_html(loggers: Iterable[Logger], key: str, html: str, step: int) -> None:
    """Log a self-contained page: W&B."""
    import wandb

    for logger in loggers:
        if isinstance(logger, WandbLogger):
            page = wandb.Html(html, inject=False)
            logger.log_metrics({key: page}, step)  # type: ignore[dict-item]


@rank_zero_only
def log_summary(loggers: Iterable[Logger], metrics: Mapping[str, Any]) -> None:
    """Log final metrics, of which a run has one value: W&B."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(dict(metrics))


@rank_zero_only
def log_artifact(loggers: Iterable[Logger], kind: str, path: Path | None) -> None:
    """Log a config or a checkpoint as an artifact: W&B, if it was asked for this kind.

    The file must stay as it is until it is uploaded.
    """
    for logger in loggers:
        if isinstance(logger, RunLogger):
            with going_on_without(Path(logger.save_dir or ".", "wandb")):
                logger.log_artifact(kind, path)


@rank_zero_only
def finish_loggers(loggers: Iterable[Logger], exit_code: int) -> None:
    """Close the loggers, so that the next job of this process starts its own run.

    W&B shows the run as finished for exit code 0, as stopped for that of Ctrl-C, and as failed for
    any other. A run that is never closed has crashed.
    """
    for logger in loggers:
        logger.finalize("success" if exit_code == 0 else "failed")
        if isinstance(logger, WandbLogger):
            finish_run(logger.experiment, exit_code)


def summary_metrics(results: Mapping[str, Any], val_losses: Sequence[float]) -> dict[str, Any]:
    """Return the numbers and strings of a run's results, for `log_summary`.

    The metrics are those of the weights that are kept. `val/best_loss` and `val/last_loss` are the
    least and the last of the validation losses during the training.
    """
    summary = {name: x for name, x in results.items() if isinstance(x, int | float | str)}
    if val_losses:
        summary |= {"val/best_loss": min(val_losses), "val/last_loss": val_losses[-1]}
    return summary
