"""Runs of W&B: online where W&B can be reached, else offline."""

from __future__ import annotations

import io
import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from weakref import WeakSet

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.stacks import branches_by_role
from attention_zoo.tasks.run_folder import RunFolder, going_on_without, relative_to_cwd
from attention_zoo.tasks.task_spec import task_spec

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

Mode = Literal["auto", "online", "offline", "disabled"]
Artifact = Literal["config", "checkpoint"]
WANDB_INTERRUPTED = 255  # wandb's exit code for Ctrl-C
# Loggers whose server has failed to take a table.
WITHOUT_TABLES: WeakSet[WandbLogger] = WeakSet()


class RunLogger(WandbLogger):
    """W&B's logger, with the kinds of artifacts that its run keeps: some of `Artifact`."""

    def __init__(self, *, artifacts: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self.artifacts = artifacts

    def log_artifact(self, kind: str, path: Path | None) -> None:
        """Log a file as an artifact, if the run keeps this kind."""
        import wandb

        if kind not in self.artifacts:
            return
        if path is None:
            log.warning("W&B: this run leaves no %s to keep as an artifact.", kind)
            return
        run = self.experiment
        artifact = wandb.Artifact(f"{kind}-{run.id}", type={"checkpoint": "model"}.get(kind, kind))
        # The file itself, in the run's folder: else wandb copies it to the user's home.
        artifact.add_file(os.fspath(path.absolute()), policy="immutable", skip_cache=True)
        run.log_artifact(artifact)


def create_wandb_logger(
    *,
    project: str,
    save_dir: str | Path,
    id: str | None = None,
    artifacts: Sequence[Artifact] = (),
    mode: Mode = "auto",
    init_timeout: float = 8.0,
    finish_timeout: float = 15.0,
    **options: Any,
) -> RunLogger:
    """Start a W&B run and return its Lightning logger.

    The run is started here, on rank zero only, so that a missing key, a wrong key or a missing
    network is known before the training begins. In each of these cases the run goes on offline, and
    one line logs why and how to look at it. Nothing is ever asked on the terminal.

    Args:
        project: the project that the run belongs to.
        save_dir: folder that gets the `wandb/` folder.
        id: that of a run that goes on; default: `WANDB_RUN_ID`, set by `wandb agent`, or a new one.
        artifacts: the kinds of files that `log_artifact` logs: "config", "checkpoint".
        mode: "online", "offline", "disabled", or "auto": what `WANDB_MODE` or `wandb offline`
            sets, else online where a key is configured, else offline.
        init_timeout: seconds to wait for the server at the start, before going on offline.
        finish_timeout: seconds to wait at the end for the upload; what is left stays on disk.
        **options: those of `wandb.init`, such as entity, name, group, job_type and tags.

    Raises:
        UserError: an unknown `mode` or kind of artifact.
    """
    if mode not in get_args(Mode):
        raise UserError(f"logger mode must be one of {', '.join(get_args(Mode))}, got {mode!r}.")
    if invalid := [kind for kind in artifacts if kind not in get_args(Artifact)]:
        legal = ", ".join(get_args(Artifact))
        raise UserError(f"logger artifacts must be of {legal}, got {invalid[0]!r}.")
    resume = None if id is None else "allow"
    options |= {"project": project, "dir": os.fspath(save_dir), "resume": resume}
    timeouts = {"init_timeout": init_timeout, "finish_timeout": finish_timeout}
    run = start_run(mode, id, timeouts, options)
    return RunLogger(artifacts=artifacts, project=project, save_dir=save_dir, experiment=run)


def wandb_options(
    config: Mapping[str, Any], node: Mapping[str, Any], job_type: str
) -> dict[str, Any]:
    """Return the name, group, job type and tags of a run in W&B, where its node leaves them open.

    The name is `translation-linear-rotary-1`: task, attention, position and seed. A role with
    another attention adds it: `translation-linear-cross=additive-rotary-1`. The group is the name
    of the sweep, also for an evaluation of one of its jobs; a single run has none.

    Raises:
        UserError: artifacts of a command that leaves none.
    """
    if node.get("artifacts") and job_type != "train":
        raise UserError(
            f"{job_type} leaves nothing to keep as an artifact, got "
            f"artifacts={list(node['artifacts'])}; ask for them in the training."
        )
    task, branches = task_spec(config).name, branches_by_role(config)
    by_role = {role: joined(x.attention for x in parts) for role, parts in branches.items()}
    position = joined(x.position for x in chain(*branches.values()) if x.position)
    shared = config["attention"]["name"] if config["attention"] else next(iter(by_role.values()))
    others = {role: name for role, name in by_role.items() if name != shared}
    attention = [shared] if len(others) < len(by_role) else []
    attention += [f"{role.removesuffix('_attention')}={name}" for role, name in others.items()]
    tags = [task, config["choices"]["data"], *by_role.values(), position, *node.get("tags", [])]
    return {
        "name": node.get("name") or "-".join([task, *attention, position, str(config["seed"])]),
        "group": node.get("group") or RunFolder(config["paths"]["run"]).sweep_name(),
        "job_type": node.get("job_type") or job_type,
        "tags": list(dict.fromkeys(tags)),
    }


def joined(nodes: Iterable[Any]) -> str:
    """Return the names of kinds of layers, without repetition: `gated_delta+gated`."""
    return "+".join(dict.fromkeys(node["name"] for node in nodes))


@rank_zero_only
def start_run(mode: str, id: str | None, timeouts: dict[str, Any], options: dict[str, Any]) -> Run:
    """Start a run: online if the mode asks for it and W&B can be reached, else offline."""
    # wandb's own telemetry waits for the server too, even in offline runs: without a network it
    # delayed the end of the process by 10 to 20 s. wandb reads this once, when its service starts,
    # so it cannot differ between the jobs of one process.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    folder = RunFolder(options["dir"])
    # wandb goes to the system's folder for temporary files where this one is missing.
    folder.path.mkdir(parents=True, exist_ok=True)
    options["settings"] = wandb.Settings(
        silent=True,  # the one line that matters is logged below
        finish_timeout_raises=True,
        # A process that is killed loses what was not written yet; the default is 15 s.
        x_transaction_log_flush_interval=1.0,
        **timeouts,
    )
    # The default would join a run that an earlier job left open.
    options["reinit"] = "create_new"
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
    id = id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    run, offline_reason = None, None
    if mode == "online":
        earlier = {*folder.path.glob(f"wandb/run-*-{id}")}
        try:
            if has_api_key():
                run = wandb.init(mode="online", id=id, **options)
            else:
                offline_reason = "no API key is configured (wandb login)"
        except wandb.Error as error:
            offline_reason = str(error).partition("\n")[0]
            # The attempt leaves a folder without data, which `wandb leet` would list as a run.
            for path in {*folder.path.glob(f"wandb/run-*-{id}")} - earlier:
                shutil.rmtree(path, ignore_errors=True)
            # wandb's service holds the id until its end.
            if wandb.setup().most_recent_active_run is None:
                wandb.teardown()
            else:
                id = secrets.token_hex(4)
    offline: Any = "offline" if mode == "online" else mode
    run = run or wandb.init(mode=offline, id=id, **options)
    if not run.disabled:
        with going_on_without(folder.wandb_id_file):
            folder.wandb_id_file.write_text(f"{run.id}\n")
    log_start(run, offline_reason)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return run


def log_start(run: Run, offline_reason: str | None) -> None:
    """Log where a run can be looked at, and why it is offline if it should not be."""
    if run.offline:
        folder = relative_run_folder(run)
        level = logging.WARNING if offline_reason else logging.INFO
        commands = f"Look with `wandb leet {folder}`, upload with `wandb sync {folder}`."
        log.log(level, "W&B: offline, %s. %s", offline_reason or "as asked", commands)
    elif not run.disabled:
        log.info("W&B: %s", run.url)


def has_api_key() -> bool:
    """Return whether wandb finds a key (environment, netrc or settings), without asking for one."""
    import wandb

    settings = wandb.setup().settings
    silent = settings.silent
    settings.silent = True  # else wandb asks the server for the user's name, up to 5 s
    try:
        with redirect_stderr(io.StringIO()):
            return wandb.login(prompt=False, verify=False)
    finally:
        settings.silent = silent


def relative_run_folder(run: Run) -> str:
    """Return the folder of a run, relative to the working directory if it lies there."""
    return os.fspath(relative_to_cwd(Path(run.dir).parent))


def log_wandb_table(
    logger: WandbLogger, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
) -> None:
    """Log a table, unless the server has failed to take one before."""
    import wandb

    if logger in WITHOUT_TABLES:
        return
    table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
    previous = os.environ.get("WANDB_DATA_DIR")
    try:
        # By default, wandb copies a table that waits for its upload to the user's home.
        os.environ["WANDB_DATA_DIR"] = os.fspath(Path(logger.experiment.dir).parent)
        logger.log_metrics({key: table}, step)  # type: ignore[dict-item]
    except Exception as error:
        # wandb sends the first part of a table from this thread, unlike all else: without a network
        # it waits, then raises errors of many kinds. Once is enough.
        WITHOUT_TABLES.add(logger)
        log.warning("W&B: no more tables in this run: %s", str(error).partition("\n")[0])
    finally:
        os.environ.pop("WANDB_DATA_DIR", None)
        if previous is not None:
            os.environ["WANDB_DATA_DIR"] = previous


def find_write_error(folder: Path) -> OSError | None:
    """Return why nothing can be written to a folder, such as a full disk; None if it can."""
    probe = folder / ".probe"
    try:
        probe.write_bytes(bytes(4096))
    except OSError as error:
        return error
    finally:
        probe.unlink(missing_ok=True)
    return None


def finish_run(run: Run, exit_code: int) -> None:
    """Finish a run, and wait until its file is closed."""
    import wandb

    folder = Path(run.dir).parent
    # The service of an offline run says nothing of what it could not write.
    write_error = find_write_error(folder) if run.offline and not run.disabled else None
    try:
        run.finish(exit_code=WANDB_INTERRUPTED if exit_code > 128 else exit_code)
    except TimeoutError:
        log.warning(
            "W&B: not everything was uploaded in time; send the rest with `wandb sync %s`.",
            relative_run_folder(run),
        )
    except OSError as error:
        write_error = write_error or error
    if write_error is not None:
        reason = write_error.strerror or write_error
        log.warning("%s: not all is logged there: %s.", folder, reason)
    # `finish` does not wait until the run's file is closed; the end of wandb's service does.
    if not run.disabled and wandb.setup().most_recent_active_run is None:
        wandb.teardown(exit_code)
