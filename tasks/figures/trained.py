"""The trained model that pictures are of."""

from pathlib import Path
from typing import Any

from attention_zoo.errors import UserError
from attention_zoo.tasks.checkpoints import newest_of_runs, read_checkpoint

LOGS = Path("logs")


def newest_translation(logs: Path = LOGS) -> Path | None:
    """The best checkpoint of the translation that was trained last, if there is one."""
    return newest_of_runs(logs, "translation", "best.ckpt")


def load_translation(path: Path) -> Any:
    """The `TranslationTask` in a checkpoint, on the CPU, ready to translate.

    Raises:
        UserError: no checkpoint of ours, or one of another task.
    """
    from attention_zoo.tasks.base import load_task

    checkpoint = read_checkpoint(path)
    config = checkpoint["attention_zoo"]["config"]
    if config["task"]["name"] != "translation":
        raise UserError(
            f"{path} is of task={config['task']['name']}; pictures of a trained model are of a "
            "translation. Name one of those: ckpt=logs/translation/…/checkpoints/best.ckpt"
        )
    return load_task(checkpoint, config)
