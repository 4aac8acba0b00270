"""Read checkpoints, which hold the model, the tokenizer, and the config that it was composed of."""

from pathlib import Path
from typing import Any

import torch

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.configuration.renamed_options import upgrade_checkpoint
from attention_zoo.tasks.run_folder import BEST_CHECKPOINT, CHECKPOINTS, LAST_CHECKPOINT
from attention_zoo.tasks.task_spec import TaskSpec, task_spec


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project to the CPU, and translate it if it is of version 0.1.

    A checkpoint holds plain data: nothing in it is executed.

    Raises:
        BadInput: no such file, or not a checkpoint of this project.
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
    upgrade_checkpoint(checkpoint)
    return checkpoint


def last_checkpoint(logs: Path, task: str) -> Path:
    """Return the last.ckpt that was written latest in the runs of a task.

    Raises:
        UserError: there is none.
    """
    path = newest_checkpoint(logs, task, LAST_CHECKPOINT)
    if path is None:
        raise UserError(f"ckpt_path=last: there is no checkpoint under {logs / task / 'runs'} yet.")
    return path


def newest_checkpoint(logs: Path, task: str, file_name: str) -> Path | None:
    """Return the checkpoint that was written latest in the runs of a task; None if there is none.

    Args:
        logs: the folder of all runs.
        task: the name of the task.
        file_name: best.ckpt or last.ckpt.
    """
    paths = (logs / task / "runs").glob(f"*/{CHECKPOINTS}/{file_name}")
    return max(paths, key=lambda path: path.stat().st_mtime, default=None)


def require_task(config: dict[str, Any], task: TaskSpec) -> None:
    """Refuse a checkpoint of another task, which another command uses.

    Raises:
        UserError: with that command.
    """
    found = task_spec(config)
    if found != task:
        raise UserError(
            f"This checkpoint is of task={found.name}: use attention-zoo {found.command}."
        )
