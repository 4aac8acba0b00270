"""The trained task of the pictures."""

from pathlib import Path
from typing import Any

from attention_zoo.errors import UserError

LOGS = Path("logs")


def find_newest_translation(logs: Path = LOGS) -> Path:
    """Return the best checkpoint of the latest training of a translation.

    Raises:
        UserError: there is none.
    """
    from attention_zoo.tasks.training.checkpoints import newest_of_runs

    newest = newest_of_runs(logs, "translation", "best.ckpt")
    if newest is None:
        raise UserError(
            f"there is no trained translation under {logs / 'translation' / 'runs'} yet; train one "
            "with make demo or attention-zoo train."
        )
    return newest


def load_translation(path: Path) -> Any:
    """Return the `TranslationTask` of a checkpoint, on the CPU, in evaluation mode.

    Raises:
        UserError: the file is no checkpoint of attention-zoo, or one of another task.
    """
    from attention_zoo.tasks.training.checkpoints import read_checkpoint

    checkpoint = read_checkpoint(path)
    config = checkpoint["attention_zoo"]["config"]
    if config["task"]["name"] != "translation":
        raise UserError(
            f"{path} is of task={config['task']['name']}, but the pictures need a translation. "
            "Name the checkpoint of one: ckpt_path=logs/translation/…/checkpoints/best.ckpt"
        )
    # This import takes seconds, so it follows the checks.
    from attention_zoo.tasks.training.task import load_task

    return load_task(checkpoint, config)
