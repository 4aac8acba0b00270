"""Write checkpoints whole or not at all, wherever Lightning writes them."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

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
        except (OSError, RuntimeError) as error:
            # torch's writer makes a RuntimeError of a write that fails.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            log.warning(
                "%s was not written at step %s: %s. The training goes on, and the next checkpoint "
                "is tried again.",
                path,
                checkpoint.get("global_step"),
                cause.strerror or cause,
            )
        finally:
            draft.unlink(missing_ok=True)
