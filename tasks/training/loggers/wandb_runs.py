"""Runs of W&B: how they start, online where they can, and where they lie."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from attention_zoo.errors import UserError

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline", "disabled")
ARTIFACTS = ("config", "checkpoint")
# Where a run's folder says what W&B calls the run.
RUN_ID = Path("wandb", "id.txt")


class RunLogger(WandbLogger):
    """W&B's logger, and which artifacts its run keeps: some of `ARTIFACTS`."""

    def __init__(self, *, artifacts: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self.artifacts = artifacts


def run_id(folder: Path) -> str | None:
    """What W&B calls the run of a folder, if it has one."""
    path = folder / RUN_ID
    return path.read_text().strip() if path.exists() else None


def create_wandb_logger(
    *,
    project: str,
    entity: str | None = None,
    save_dir: str | Path,
    id: str | None = None,
    name: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: Sequence[str] = (),
    artifacts: Sequence[str] = (),
    mode: str = "auto",
    init_timeout: float = 8.0,
    finish_timeout: float = 15.0,
) -> RunLogger:
    """Start a W&B run and return its Lightning logger.

    The run is started here, on rank zero only, so that a missing key, a wrong key or a missing
    network is known before the training begins. Each of these makes the run go on offline, with
    one line that says why and how to look at it. Nothing is ever asked on the terminal.

    Args:
        project: the project that the run belongs to.
        entity: the user or team that the project belongs to; that of the key, if not given.
        save_dir: folder that gets the `wandb/` folder; made where it is missing.
        id: of a run that goes on; `WANDB_RUN_ID`, as `wandb agent` sets it, or a new one, if not
            given.
        name: shown name of the run; W&B invents one where it is None.
        group: runs with the same group are shown together.
        job_type: for instance "train" or "evaluate".
        tags: words to filter runs by.
        artifacts: what of that which `log_artifact` is handed becomes one: "config", "checkpoint".
        mode: "online", "offline", "disabled", or "auto": what `WANDB_MODE` or `wandb offline`
            says, else online where a key is configured, else offline.
        init_timeout: seconds to wait for the server at the start, before going on offline.
        finish_timeout: seconds to wait at the end for the upload; what is left stays on disk.

    Raises:
        UserError: if `mode` or one of `artifacts` is none of the above.
    """
    if mode not in MODES:
        raise UserError(f"logger mode must be one of {', '.join(MODES)}, got {mode!r}.")
    for kind in artifacts:
        if kind not in ARTIFACTS:
            raise UserError(f"logger artifacts must be of {', '.join(ARTIFACTS)}, got {kind!r}.")
    run = _start_run(
        mode,
        init_timeout=init_timeout,
        finish_timeout=finish_timeout,
        project=project,
        entity=entity,
        dir=os.fspath(save_dir),
        resumed=id,
        name=name,
        group=group,
        job_type=job_type,
        tags=list(tags),
    )
    return RunLogger(artifacts=artifacts, project=project, save_dir=save_dir, experiment=run)


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
        # A process that is killed loses what was not written yet; the default is 15 s.
        x_transaction_log_flush_interval=1.0,
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
    id = resumed or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    if mode == "online":

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
            # wandb's service holds the id until its end.
            if wandb.setup().most_recent_active_run is None:
                wandb.teardown()
            else:
                id = secrets.token_hex(4)
    run = run or start("offline" if mode == "online" else mode, id)
    if not run.disabled:
        Path(identity["dir"], RUN_ID).write_text(f"{run.id}\n")

    if run.offline:
        log.log(
            logging.WARNING if reason else logging.INFO,
            "W&B: offline, %s. Look with `wandb leet %s`, upload with `wandb sync %s`.",
            reason or "as asked",
            folder_of(run),
            folder_of(run),
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


def folder_of(run: Run) -> str:
    """The run's folder, as short as it can be written from here."""
    folder = Path(run.dir).parent
    here = Path.cwd()
    return os.fspath(folder.relative_to(here) if folder.is_relative_to(here) else folder)


@contextlib.contextmanager
def staged_in(folder: Path) -> Iterator[None]:
    """wandb copies a table that waits for its upload to the user's home; here, to this folder."""
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = os.fspath(folder)
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]
        if before is not None:
            os.environ["WANDB_DATA_DIR"] = before
