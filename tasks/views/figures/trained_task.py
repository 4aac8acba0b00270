"""The trained task of the pictures."""

from pathlib import Path
from typing import Any

from attention_zoo.errors import UserError
from attention_zoo.tasks.run_folder import BEST_CHECKPOINT
from attention_zoo.tasks.task_spec import TRANSLATION, task_spec
from attention_zoo.tasks.training.checkpoints import newest_checkpoint, read_checkpoint


def find_newest_translation() -> Path:
    """Return the best checkpoint of the latest training of a translation."""
    path = newest_checkpoint(Path("logs"), TRANSLATION.name, BEST_CHECKPOINT)
    if path is None:
        raise UserError(
            f"there is no trained translation under logs/{TRANSLATION.name}/runs yet; "
            "train one with make demo or attention-zoo train."
        )
    return path


def load_translation(path: Path) -> Any:
    """Return the `TranslationTask` of a checkpoint, on the CPU, in evaluation mode."""
    checkpoint = read_checkpoint(path)
    config = checkpoint["attention_zoo"]["config"]
    if task_spec(config) != TRANSLATION:
        raise UserError(
            f"{path} is of task={config['task']['name']}, but the pictures need a translation. "
            "Name the checkpoint of one: ckpt_path=logs/translation/…/checkpoints/best.ckpt"
        )
    # This import takes seconds, so it follows the checks.
    from attention_zoo.tasks.training.task import load_task

    return load_task(checkpoint, config)
