"""Write checkpoints whole or not at all, wherever Lightning writes them."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy
from torch.distributed.checkpoint.api import CheckpointException

log = logging.getLogger(__name__)


class WholeCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its place, then put it there in one step.

    So a process that is killed leaves the old file or the new one, never a part. Where the file
    cannot be written, such as on a full disk, the old one stays, a warning says so, and the
    training goes on.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(path)
        draft = path.with_name(f".{path.name}.draft")  # One that a kill left is overwritten.
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        except Exception as error:
            warn_of_unwritten(path, checkpoint, error)
        finally:
            draft.unlink(missing_ok=True)


def guard_own_files(strategy: Strategy) -> None:
    """Let a strategy that writes its own files go on, with a warning, where it cannot write them.

    Each rank writes a part. What is left of a checkpoint that is not whole is removed, so that
    nothing takes it for one.
    """
    save = strategy.save_checkpoint

    def save_checkpoint(
        checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        try:
            save(checkpoint, filepath, storage_options)
        except (Exception, CheckpointException) as error:
            warn_of_unwritten(Path(filepath), checkpoint, error)
            if strategy.is_global_zero:
                shutil.rmtree(filepath, ignore_errors=True)
                Path(filepath).unlink(missing_ok=True)

    strategy.save_checkpoint = save_checkpoint  # type: ignore[method-assign]


def warn_of_unwritten(path: Path, checkpoint: dict[str, Any], error: BaseException) -> None:
    """Warn that a checkpoint was not written; raise any error that is not of the file system."""
    cause = find_os_error(error)
    if cause is None:
        raise error
    log.warning(
        "%s was not written at step %s: %s. The training goes on, and the next checkpoint is tried "
        "again.",
        path,
        checkpoint.get("global_step"),
        cause.strerror or cause,
    )


def find_os_error(error: BaseException | None) -> OSError | None:
    """Return the error of the file system that an error is, or that it was made of.

    torch's writer makes a RuntimeError of it, and its distributed writer collects those of all
    ranks.
    """
    if error is None or isinstance(error, OSError):
        return error
    if isinstance(error, CheckpointException):
        found = [find_os_error(failure) for failure, _ in error.failures.values()]
        return next((x for x in found if x is not None), None)
    return find_os_error(error.__cause__ or error.__context__)
