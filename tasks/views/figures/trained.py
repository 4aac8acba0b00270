"""The trained model that pictures are of."""

from pathlib import Path
from typing import Any

from attention_zoo.errors import UserError
from attention_zoo.tasks.run_folder import BEST_CHECKPOINT
from attention_zoo.tasks.task_spec import TRANSLATION, task_spec
from attention_zoo.tasks.training.checkpoints import newest_checkpoint, read_checkpoint

LOGS = Path("logs")


def newest_translation(logs: Path = LOGS) -> Path:
    """The best checkpoint of the translation that was trained last.

    Raises:
        UserError: there is none.
    """
    newest = newest_checkpoint(logs, TRANSLATION.name, BEST_CHECKPOINT)
    if newest is None:
        raise UserError(
            f"there is no trained translation under {logs / TRANSLATION.name / 'runs'} yet; make demo "
            "or attention-zoo train makes one."
        )
    return newest


def load_translation(path: Path) -> Any:
    """The `TranslationTask` in a checkpoint, on the CPU, ready to translate.

    Raises:
        UserError: no checkpoint of ours, or one of another task.
    """
    checkpoint = read_checkpoint(path)
    config = checkpoint["attention_zoo"]["config"]
    if task_spec(config) != TRANSLATION:
        raise UserError(
            f"{path} is of task={config['task']['name']}; pictures of a trained model are of a "
            "translation. Name one of those: ckpt_path=logs/translation/…/checkpoints/best.ckpt"
        )
    # It takes seconds to import, which a wrong name need not wait for.
    from attention_zoo.tasks.training.task import load_task

    return load_task(checkpoint, config)
