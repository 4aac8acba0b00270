"""The Lightning side of the zoo: tasks, data, callbacks and the commands of the program."""

from pathlib import Path
from typing import TYPE_CHECKING

from attention_zoo.errors import BadInput

if TYPE_CHECKING:
    from attention_zoo.tasks.training.task import Task


def load(path: str | Path) -> "Task":
    """Return a trained task, ready for use: `load("best.ckpt").attend("A line.")`.

    The task is on the CPU and in evaluation mode. The checkpoint needs nothing beside it, and
    nothing in it is executed.

    Raises:
        BadInput: no such file, or not a checkpoint of this project.
    """
    if not isinstance(path, str | Path) or not str(path):
        raise BadInput(f"a checkpoint is named by a path, got {path!r}.")
    from attention_zoo.tasks.training.checkpoints import read_checkpoint
    from attention_zoo.tasks.training.task import load_task

    checkpoint = read_checkpoint(Path(path))
    return load_task(checkpoint, checkpoint["attention_zoo"]["config"])
