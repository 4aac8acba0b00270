"""Where a run is written down: W&B, TensorBoard, CSV, several of them, or nowhere.

Only this module knows the loggers apart. The rest of the code hands `trainer.loggers` to
`log_image`, `log_table`, `log_summary` and `finish`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakSet

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..errors import UserError
from .results import choice_of

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

# The W&B loggers whose server has failed to take a table.
_without_tables: WeakSet[WandbLogger] = WeakSet()

MODES = ("auto", "online", "offline", "disabled")
# Where a run's folder says what W&B calls the run.
RUN_ID = Path("wandb", "id.txt")


def create_loggers(config: Mapping[str, Any] | None, resumed: Path | None = None) -> list[Logger]:
    """Build the loggers of the config group `logger`.

    Args:
        config: one node a logger (name to `_target_` and arguments), or None for no logger.
        resumed: the checkpoint of a run that goes on; so does the run that W&B shows of it.

    Returns:
        What `Trainer(logger=…)` takes. An empty list means no logger at all.

    Raises:
        UserError: if a logger's package is not installed.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    loggers = []
    before = run_id(resumed.parent.parent) if resumed is not None else None
    for name, node in (config or {}).items():
        of_wandb = node["_target_"].endswith(create_wandb_logger.__name__)
        more = {"id": before} if before is not None and of_wandb else {}
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


def run_id(folder: Path) -> str | None:
    """What W&B calls the run of a folder, if it has one."""
    path = folder / RUN_ID
    return path.read_text().strip() if path.exists() else None


def create_wandb_logger(
    *,
    project: str,
    save_dir: str | Path,
    id: str | None = None,
    name: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: Sequence[str] = (),
    mode: str = "auto",
    init_timeout: float = 8.0,
    finish_timeout: float = 15.0,
    log_model: Literal["all"] | bool = False,
) -> WandbLogger:
    """Start a W&B run and return its Lightning logger.

    The run is started here, on rank zero only, so that a missing key, a wrong key or a missing
    network is known before the training begins. Each of these makes the run go on offline, with
    one line that says why and how to look at it. Nothing is ever asked on the terminal.

    Args:
        project: the project that the run belongs to.
        save_dir: folder that gets the `wandb/` folder; made where it is missing.
        id: of a run that goes on; a new one, if not given.
        name: shown name of the run; W&B invents one where it is None.
        group: runs with the same group are shown together.
        job_type: for instance "train" or "evaluate".
        tags: words to filter runs by.
        mode: "online", "offline", "disabled", or "auto": what `WANDB_MODE` or `wandb offline`
            says, else online where a key is configured, else offline.
        init_timeout: seconds to wait for the server at the start, before going on offline.
        finish_timeout: seconds to wait at the end for the upload; what is left stays on disk.
        log_model: as in `WandbLogger`: upload checkpoints at the end (True) or as they are made
            ("all"). Offline, they are kept for the upload.

    Raises:
        UserError: if `mode` is none of the above.
    """
    if mode not in MODES:
        raise UserError(f"logger mode must be one of {', '.join(MODES)}, got {mode!r}.")
    run = _start_run(
        mode,
        init_timeout=init_timeout,
        finish_timeout=finish_timeout,
        project=project,
        dir=os.fspath(save_dir),
        resumed=id,
        name=name,
        group=group,
        job_type=job_type,
        tags=list(tags),
    )
    return WandbLogger(project=project, save_dir=save_dir, log_model=log_model, experiment=run)


@rank_zero_only
def _start_run(
    mode: str,
    *,
    resumed: str | None,
    init_timeout: float,
    finish_timeout: float,
    **identity: Any,
) -> Run:
    # wandb's own telemetry waits for the server too, even in offline runs: behind a network that
    # swallows packets it held the end of the process for 10 to 20 s. wandb reads this once, when
    # its service starts, so it cannot differ between the jobs of one process.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    # wandb goes to the system's folder for temporary files where this one is missing.
    Path(identity["dir"]).mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        silent=True,  # we say the one line that matters
        init_timeout=init_timeout,
        finish_timeout=finish_timeout,
        finish_timeout_raises=True,
    )

    def start(mode: Any, id: str) -> Run:
        # "create_new", because the default joins a run that an earlier job left open.
        resume: Any = None if resumed is None else "allow"
        return wandb.init(
            mode=mode, id=id, resume=resume, reinit="create_new", settings=settings, **identity
        )

    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
    reason = None
    run = None
    if mode == "online":
        id = resumed or secrets.token_hex(4)

        def found() -> Iterator[Path]:
            return Path(identity["dir"], "wandb").glob(f"run-*-{id}")

        before = {*found()}
        try:
            if _has_key():
                run = start("online", id)
            else:
                reason = "no API key is configured (wandb login)"
        except wandb.Error as error:
            reason = str(error).partition("\n")[0]
            # The attempt leaves a folder without data, which `wandb leet` would list as a run.
            for folder in {*found()} - before:
                shutil.rmtree(folder, ignore_errors=True)
    run = run or start("offline" if mode == "online" else mode, resumed or secrets.token_hex(4))
    if not run.disabled:
        Path(identity["dir"], RUN_ID).write_text(f"{run.id}\n")

    if run.offline:
        log.log(
            logging.WARNING if reason else logging.INFO,
            "W&B: offline, %s. Look with `wandb leet %s`, upload with `wandb sync %s`.",
            reason or "as asked",
            _folder(run),
            _folder(run),
        )
    elif not run.disabled:
        log.info("W&B: %s", run.url)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return run


def _has_key() -> bool:
    """Whether wandb finds a key (environment, netrc or settings), without asking for one."""
    import wandb

    settings = wandb.setup().settings
    silent = settings.silent
    settings.silent = True  # else wandb asks the server for the user's name, up to 5 s
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return wandb.login(prompt=False, verify=False)
    finally:
        settings.silent = silent


def _folder(run: Run) -> str:
    """The run's folder, as short as it can be written from here."""
    folder = Path(run.dir).parent
    here = Path.cwd()
    return os.fspath(folder.relative_to(here) if folder.is_relative_to(here) else folder)


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
def finish(loggers: Iterable[Logger], exit_code: int) -> None:
    """Close the loggers, so that the next job of this process starts its own run.

    Args:
        loggers: `trainer.loggers`, or what `create_loggers` gave if there is no trainer yet.
        exit_code: 0 for success. Anything else makes W&B show the run as failed.
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


@_close.register
def _(logger: WandbLogger, exit_code: int) -> None:
    run = logger.experiment
    try:
        run.finish(exit_code=exit_code)
    except TimeoutError:
        log.warning(
            "W&B: not everything was uploaded in time; send the rest with `wandb sync %s`.",
            _folder(run),
        )


@_put_image.register
def _(logger: TensorBoardLogger, key: str, picture: Image.Image, step: int) -> None:
    logger.experiment.add_image(key, np.asarray(picture), step, dataformats="HWC")


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


def flat_config(
    config: Mapping[str, Any], *, parameters: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The resolved config as flat keys, to group, filter and colour runs by.

    A group's own key holds what was chosen (its `name`, else the last word of its `_target_`),
    the keys below it hold its values: `attention: grouped_query`, `attention/kv_heads: 2`. The
    overrides of one role stand below `attention`: `attention/cross: additive`. `logger` and
    `paths` are left out: where a run is written down is not what was run.

    Log it before the fit, with `logger.log_hyperparams(flat_config(…))`: a run that crashes in
    its first step is then found by its config too.

    Args:
        config: plain dicts and lists, all interpolations resolved.
        parameters: number of parameters by part. "total" becomes the key `parameters`, any other
            part `parameters/<part>`.
    """
    flat: dict[str, Any] = {}
    for group, node in config.items():
        if group not in ("logger", "paths"):
            role, _, attention = group.rpartition("_")
            label = f"attention/{role}" if role and attention == "attention" else group
            flat.update(_leaves(label, node))
    for part, count in (parameters or {}).items():
        flat["parameters" if part == "total" else f"parameters/{part}"] = count
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
