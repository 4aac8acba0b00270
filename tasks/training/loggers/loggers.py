"""Where a run is written down: W&B, TensorBoard, CSV, several of them, or nowhere.

In a Trainer of one's own MLflow and Comet get the pictures as well.

Only this module knows the loggers apart. The rest of the code hands `trainer.loggers` to
`log_image`, `log_table`, `log_summary`, `log_artifact` and `finish`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
from lightning.pytorch.loggers import (
    CometLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from attention_zoo.errors import UserError
from attention_zoo.tasks.commands.exit_codes import INTERRUPTED
from attention_zoo.tasks.configuration.build import attention_by_role
from attention_zoo.tasks.sweeps.jobs import RECORD
from attention_zoo.tasks.training.loggers.wandb_runs import (
    RunLogger,
    create_wandb_logger,
    folder_of,
    run_id,
    staged_in,
)
from attention_zoo.tasks.training.results import choice_of

log = logging.getLogger(__name__)

# The W&B loggers whose server has failed to take a table.
_without_tables: WeakSet[WandbLogger] = WeakSet()

# wandb's exit code for Ctrl-C.
STOPPED = 255


def create_loggers(
    config: Mapping[str, Any], *, job_type: str, resumed: Path | None = None
) -> list[Logger]:
    """Build the loggers of the config group `logger`.

    Args:
        config: the whole of it, in plain containers. `logger` has one node a logger (name to
            `_target_` and arguments), or is None for no logger.
        job_type: the verb.
        resumed: the checkpoint of a run that goes on; so does the run that W&B shows of it.

    Returns:
        What `Trainer(logger=…)` takes. An empty list means no logger at all.

    Raises:
        UserError: if a logger's package is not installed.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    loggers = []
    for name, node in (config["logger"] or {}).items():
        more: dict[str, Any] = {}
        if node["_target_"].endswith(create_wandb_logger.__name__):
            before = run_id(resumed.parent.parent) if resumed is not None else None
            more = identity(config, node, job_type) | ({"id": before} if before else {})
        try:
            loggers.append(instantiate(node, **more, _convert_="all"))
        except InstantiationException as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            if isinstance(error.__cause__, ModuleNotFoundError):
                raise UserError(
                    f"logger={name} needs a package that is not installed; "
                    f"pip install 'attention-zoo[{name}]', or choose logger=csv or logger=none."
                ) from None
            raise
    return loggers


def identity(
    config: Mapping[str, Any], node: Mapping[str, Any], job_type: str
) -> dict[str, str | list[str] | None]:
    """What tells a run from others, where its logger's node leaves that open.

    The name is `translation-linear-rotary-1`: task, attention, position and seed. A role that has
    an attention of its own says so: `translation-linear-cross=additive-rotary-1`. The group is the
    sweep, by the name of its folder, of an evaluation that of the job; a single run has none.

    Raises:
        UserError: artifacts of what leaves none.
    """
    if node.get("artifacts") and job_type != "train":
        raise UserError(
            f"{job_type} leaves nothing to keep as an artifact, got "
            f"artifacts={list(node['artifacts'])}; ask for them in the training."
        )
    task, position = config["task"]["name"], config["position"]["name"]
    shared = config["attention"]["name"]
    by_role = {role: chosen["name"] for role, chosen in attention_by_role(config).items()}
    own = {role: name for role, name in by_role.items() if name != shared}
    attention = [shared] if len(own) < len(by_role) else []
    attention += [f"{role.removesuffix('_attention')}={name}" for role, name in own.items()]
    words = [task, config["choices"]["data"], *by_role.values(), position, *node.get("tags", [])]
    return {
        "name": node.get("name") or "-".join([task, *attention, position, str(config["seed"])]),
        "group": node.get("group") or sweep_of(Path(config["paths"]["run"])),
        "job_type": node.get("job_type") or job_type,
        "tags": list(dict.fromkeys(words)),
    }


def sweep_of(run: Path) -> str | None:
    """The name of the sweep's folder that a run's folder, or what is in it, lies in; None of a
    single run.
    """
    job = next((folder for folder in (run, *run.parents) if (folder / RECORD).exists()), None)
    return None if job is None else job.absolute().parent.name


@rank_zero_only
def log_image(loggers: Iterable[Logger], key: str, image: Figure | Path | str, step: int) -> None:
    """Show a picture in every logger that takes pictures.

    Args:
        loggers: `trainer.loggers`.
        key: the picture's name, for instance "attention/cross/0".
        image: a matplotlib figure or the path of an image file.
        step: the trainer's global step.
    """
    if isinstance(image, Figure):
        canvas = FigureCanvasAgg(image)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    else:
        picture = Image.open(image).convert("RGB")
    for logger in loggers:
        _put_image(logger, key, picture, step)


@rank_zero_only
def log_table(
    loggers: Iterable[Logger],
    key: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    step: int,
) -> None:
    """Show a table in every logger that takes tables.

    Args:
        loggers: `trainer.loggers`.
        key: the table's name, for instance "samples".
        columns: names of the columns.
        rows: one sequence a row, as long as `columns`.
        step: the trainer's global step.
    """
    for logger in loggers:
        _put_table(logger, key, columns, rows, step)


@rank_zero_only
def log_html(loggers: Iterable[Logger], key: str, html: str, step: int) -> None:
    """Show a page that needs nothing beside it in every logger that takes pages.

    Args:
        loggers: `trainer.loggers`.
        key: the page's name, for instance "report".
        html: the whole document.
        step: the trainer's global step.
    """
    for logger in loggers:
        _put_html(logger, key, html, step)


@rank_zero_only
def log_summary(loggers: Iterable[Logger], metrics: Mapping[str, Any]) -> None:
    """Put final figures where a logger keeps one value a run (W&B's summary).

    The other loggers have no such place; for them `results.json` lies in the run's folder.
    """
    for logger in loggers:
        _put_summary(logger, metrics)


@rank_zero_only
def log_artifact(loggers: Iterable[Logger], kind: str, path: Path | None) -> None:
    """Keep a file as an artifact, where a logger was asked to keep files of this kind.

    Args:
        loggers: `trainer.loggers`.
        kind: "config" or "checkpoint".
        path: the file, which must stay as it is until it is uploaded; None where there is none.
    """
    for logger in loggers:
        _put_artifact(logger, kind, path)


def final_figures(
    results: Mapping[str, Any], val_losses: Sequence[float]
) -> dict[str, int | float | str]:
    """What a run came to, for `log_summary`: numbers and words under simple keys.

    The metrics are those of the weights that are kept. How training went before is told by
    `val/best_loss`, the least of its validation losses, and `val/last_loss`, the last of them.

    Args:
        results: what `results.json` holds; nested entries, such as versions, are left out.
        val_losses: of the validations during training.
    """
    figures = {
        name: value for name, value in results.items() if isinstance(value, int | float | str)
    }
    if val_losses:
        figures |= {"val/best_loss": min(val_losses), "val/last_loss": val_losses[-1]}
    return figures


@rank_zero_only
def finish(loggers: Iterable[Logger], exit_code: int) -> None:
    """Close the loggers, so that the next job of this process starts its own run.

    Args:
        loggers: `trainer.loggers`, or what `create_loggers` gave if there is no trainer yet.
        exit_code: 0 for success. Anything else makes W&B show the run as failed, but for that of
            Ctrl-C, by which it was stopped. A run that never comes here has crashed.
    """
    for logger in loggers:
        logger.finalize("success" if exit_code == 0 else "failed")
        _close(logger, exit_code)


@singledispatch
def _put_image(logger: Logger, key: str, picture: Image.Image, step: int) -> None:
    """A logger that takes no pictures."""


@singledispatch
def _put_table(
    logger: Logger, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
) -> None:
    """A logger that takes no tables."""


@singledispatch
def _put_html(logger: Logger, key: str, html: str, step: int) -> None:
    """A logger that takes no pages."""


@singledispatch
def _put_summary(logger: Logger, metrics: Mapping[str, Any]) -> None:
    """A logger without a summary."""


@singledispatch
def _put_artifact(logger: Logger, kind: str, path: Path | None) -> None:
    """A logger that keeps no files."""


@singledispatch
def _close(logger: Logger, exit_code: int) -> None:
    """A logger that `finalize` has closed."""


@_put_image.register
def _(logger: WandbLogger, key: str, picture: Image.Image, step: int) -> None:
    logger.log_image(key, [picture], step)


@_put_table.register
def _(
    logger: WandbLogger, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
) -> None:
    import wandb

    table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
    if logger in _without_tables:
        return
    try:
        with staged_in(Path(logger.experiment.dir).parent):
            logger.log_metrics({key: table}, step)  # type: ignore[dict-item]
    except Exception as error:
        # Unlike the rest, wandb sends a table's first part from this thread: where the network
        # has gone it waits, then raises errors of many kinds. Once is enough.
        _without_tables.add(logger)
        log.warning("W&B: no more tables in this run: %s", str(error).partition("\n")[0])


@_put_html.register
def _(logger: WandbLogger, key: str, html: str, step: int) -> None:
    import wandb

    page = wandb.Html(html, inject=False)
    logger.log_metrics({key: page}, step)  # type: ignore[dict-item]


@_put_summary.register
def _(logger: WandbLogger, metrics: Mapping[str, Any]) -> None:
    logger.experiment.summary.update(dict(metrics))


@_put_artifact.register
def _(logger: RunLogger, kind: str, path: Path | None) -> None:
    import wandb

    if kind not in logger.artifacts:
        return
    if path is None:
        log.warning("W&B: this run leaves no %s to keep as an artifact.", kind)
        return
    run = logger.experiment
    artifact = wandb.Artifact(f"{kind}-{run.id}", type={"checkpoint": "model"}.get(kind, kind))
    # The file itself, in the run's folder: else wandb copies it to the user's home.
    artifact.add_file(os.fspath(path.absolute()), policy="immutable", skip_cache=True)
    run.log_artifact(artifact)


@_close.register
def _(logger: WandbLogger, exit_code: int) -> None:
    import wandb

    run = logger.experiment
    try:
        run.finish(exit_code=STOPPED if exit_code == INTERRUPTED else exit_code)
    except TimeoutError:
        log.warning(
            "W&B: not everything was uploaded in time; send the rest with `wandb sync %s`.",
            folder_of(run),
        )
    # `finish` does not wait until the run's file is closed; the end of wandb's service does.
    if not run.disabled and wandb.setup().most_recent_active_run is None:
        wandb.teardown(exit_code)


@_put_image.register
def _(logger: TensorBoardLogger, key: str, picture: Image.Image, step: int) -> None:
    logger.experiment.add_image(key, np.asarray(picture), step, dataformats="HWC")


@_put_image.register
def _(logger: MLFlowLogger, key: str, picture: Image.Image, step: int) -> None:
    logger.experiment.log_image(logger.run_id, picture, key=key, step=step)


@_put_image.register
def _(logger: CometLogger, key: str, picture: Image.Image, step: int) -> None:
    logger.experiment.log_image(picture, name=key, step=step)


@_put_table.register
def _(
    logger: TensorBoardLogger,
    key: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    step: int,
) -> None:
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in lines]
    table = "\n".join(f"| {' | '.join(row)} |" for row in cells)
    logger.experiment.add_text(key, table, step)


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved config as flat keys, to group, filter and colour runs by.

    A group's own key holds what was chosen (its `name`, else the last word of its `_target_`),
    the keys below it hold its values: `attention: grouped_query`, `attention/kv_heads: 2`. The
    overrides of one role stand below `attention`: `attention/cross: additive`. `logger` and
    `paths` are left out: where a run is written down is not what was run.

    Log it before the fit, with `logger.log_hyperparams(flat_config(…))`: a run that crashes in
    its first step is then found by its config too.

    Args:
        config: plain dicts and lists, all interpolations resolved.
    """
    flat: dict[str, Any] = {}
    for group, node in config.items():
        if group not in ("logger", "paths"):
            role, _, attention = group.rpartition("_")
            label = f"attention/{role}" if role and attention == "attention" else group
            flat.update(_leaves(label, node))
    return flat


def _leaves(label: str, node: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, Mapping):
        yield label, node
        return
    if choice := choice_of(node):
        yield label, choice
    for key, value in node.items():
        if key != "name" and not (key.startswith("_") and key.endswith("_")):
            yield from _leaves(f"{label}/{key}", value)
