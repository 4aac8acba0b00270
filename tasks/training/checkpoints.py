"""Checkpoints are whole: the model, the tokenizer, and the config it was composed of."""

from pathlib import Path
from typing import Any

import torch

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.run_folder import BEST_CHECKPOINT, CHECKPOINTS, LAST_CHECKPOINT


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of this project, on the CPU. Holds plain data: nothing in it is executed.

    Raises:
        BadInput: no such file, or not a checkpoint of ours.
    """
    if path.is_dir():
        inside = sorted(path.glob(f"**/{BEST_CHECKPOINT}"))
        hint = f" Did you mean {inside[0]}?" if inside else ""
        raise BadInput(f"{path} is a folder; a checkpoint is a file, checkpoints/best.ckpt.{hint}")
    if not path.exists():
        raise BadInput(f"There is no checkpoint {path}. Training writes them to checkpoints/.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise BadInput(f"{path} cannot be read as a checkpoint: {reason}") from None
    if not isinstance(checkpoint, dict) or "attention_zoo" not in checkpoint:
        raise BadInput(f"{path} is no checkpoint of attention-zoo: it has no config inside.")
    return checkpoint


def newest_checkpoint(logs: Path, task: str) -> Path:
    """The last.ckpt written latest under a task's runs.

    Raises:
        UserError: there is none.
    """
    newest = newest_of_runs(logs, task, LAST_CHECKPOINT)
    if newest is None:
        raise UserError(f"ckpt_path=last: there is no checkpoint under {logs / task / 'runs'} yet.")
    return newest


def newest_of_runs(logs: Path, task: str, name: str) -> Path | None:
    """The checkpoint of a name, best.ckpt or last.ckpt, written latest under a task's runs."""
    found = (logs / task / "runs").glob(f"*/{CHECKPOINTS}/{name}")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def required(checkpoint: dict[str, Any] | None, verb: str) -> dict[str, Any]:
    """Raises: UserError, if no checkpoint was named."""
    if checkpoint is None:
        raise UserError(f"{verb} needs a checkpoint: ckpt_path=logs/…/checkpoints/best.ckpt")
    return checkpoint


def require_task(config: dict[str, Any], task: str, other: str) -> None:
    """Raises: UserError, if the checkpoint is of another task, which has another verb."""
    if config["task"]["name"] != task:
        raise UserError(
            f"This checkpoint is of task={config['task']['name']}: use attention-zoo {other}."
        )
