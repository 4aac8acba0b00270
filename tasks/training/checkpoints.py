"""Read checkpoints, which hold the model, the tokenizer, and the config that it was composed of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.configuration.renamed_options import upgrade_checkpoint
from attention_zoo.tasks.run_folder import (
    BEST_CHECKPOINT,
    CHECKPOINTS,
    LAST_CHECKPOINT,
    PREVIOUS_CHECKPOINT,
    RunFolder,
)
from attention_zoo.tasks.task_spec import TaskSpec, task_spec


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project to the CPU, and translate it if it is of version 0.1.

    A checkpoint holds plain data: nothing in it is executed. Raise BadInput if there is no such
    file, or if it is not a checkpoint of this project.
    """
    if path.is_dir():
        inside = min(path.glob(f"**/{BEST_CHECKPOINT}"), default=None)
        hint = f" Did you mean {inside}?" if inside else ""
        raise BadInput(f"{path} is a folder; a checkpoint is a file, checkpoints/best.ckpt.{hint}")
    if not path.exists():
        raise BadInput(f"There is no checkpoint {path}. Training writes them to checkpoints/.")
    try:
        # torch does not look at the checksums that it writes.
        with ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise BadZipFile(f"{damaged} has another checksum")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).split("\n")[0].rstrip(".")
        previous = path.with_name(PREVIOUS_CHECKPOINT)
        is_last = path.name == LAST_CHECKPOINT and previous.exists()
        remedy = f" Use the one before it: ckpt_path={previous}" if is_last else ""
        raise BadInput(f"{path} cannot be read as a checkpoint: {reason}.{remedy}") from None
    if not isinstance(checkpoint, dict) or "attention_zoo" not in checkpoint:
        raise BadInput(f"{path} is no checkpoint of attention-zoo: it has no config inside.")
    upgrade_checkpoint(checkpoint)
    return checkpoint


def compare_weights(
    saved: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, tuple[list[int] | None, list[int] | None]]:
    """Return the shapes in a checkpoint and in a model of the weights that differ; None: none."""
    shapes = [{name: list(x.shape) for name, x in state.items()} for state in (saved, expected)]
    pairs = {name: (shapes[0].get(name), shapes[1].get(name)) for name in (*expected, *saved)}
    return {name: (there, here) for name, (there, here) in pairs.items() if there != here}


def check_resumable(path: Path, checkpoint: dict[str, Any]) -> None:
    """Raise UserError for a checkpoint that a training cannot go on from."""
    if "optimizer_states" not in checkpoint:
        raise UserError(
            f"{path} holds weights only, without the state of the optimizer: a training goes on "
            f"from {LAST_CHECKPOINT}."
        )
    if checkpoint["attention_zoo"].get("within_step"):
        raise UserError(
            f"{path} was written between the batches of one step (trainer.accumulate_grad_batches),"
            f" whose gradients it lacks: a training goes on from {LAST_CHECKPOINT}."
        )


def last_checkpoint(run: RunFolder, logs: Path, task: str) -> Path:
    """Return the last.ckpt of a run or, if it has none, of the task's run that wrote latest.

    Raise UserError if there is none.
    """
    if run.last_checkpoint.exists():
        return run.last_checkpoint
    path = newest_checkpoint(logs, task, LAST_CHECKPOINT)
    if path is None:
        raise UserError(f"ckpt_path=last: there is no checkpoint under {logs / task / 'runs'} yet.")
    return path


def newest_checkpoint(logs: Path, task: str, file_name: str) -> Path | None:
    """Return the file of this name that was written latest in the runs of a task, if any."""
    paths = (logs / task / "runs").glob(f"*/{CHECKPOINTS}/{file_name}")
    return max(paths, key=lambda path: path.stat().st_mtime, default=None)


def require_task(config: dict[str, Any], task: TaskSpec) -> None:
    """Raise UserError for a checkpoint of another task, with the command that takes it."""
    other = task_spec(config)
    if other != task:
        raise UserError(
            f"This checkpoint is of task={other.name}: use attention-zoo {other.command}."
        )
