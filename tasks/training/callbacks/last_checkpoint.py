"""The newest state of a run, to resume from; SIGINT and SIGTERM save it too."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from attention_zoo.errors import check_positive
from attention_zoo.tasks.interruption import INTERRUPTION, Interrupted
from attention_zoo.tasks.run_folder import LAST_CHECKPOINT, PREVIOUS_CHECKPOINT
from attention_zoo.tasks.training.callbacks.triggers import is_fit_validation

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Write `last.ckpt` after every validation, every epoch and, by choice, every n-th step.

    The one before it stays as `previous.ckpt`. `ModelCheckpoint(save_last=True)` writes its last
    one only when the best one improves. This is a `Checkpoint` because Lightning runs those after
    all other callbacks.

    SIGINT and SIGTERM end the training after the current step, and after the validation that is due
    by then, as a run cannot resume in the middle of either. `last.ckpt` is written, then
    `Interrupted` raised. All ranks stop at the same step, whichever of them gets the signal.

    Args:
        dirpath: folder of `last.ckpt`.
        every_n_steps: write at every n-th step of the optimizer as well. None: do not.

    Raises:
        UserError: `every_n_steps` is below 1.
    """

    def __init__(self, *, dirpath: str | Path, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None:
            check_positive(every_n_steps=every_n_steps)
        self.path = Path(dirpath) / LAST_CHECKPOINT
        self.every_n_steps = every_n_steps
        self._saved_step = -1
        self._waits_for_step = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning has set its own handler of SIGTERM, which ends a training and saves nothing.
        INTERRUPTION.defer(True)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # What follows a batch belongs to the state: it is saved when that is over.
        if is_within_step(trainer) or trainer.is_last_batch or is_followed_by_validation(trainer):
            return
        every = self.every_n_steps
        is_due = self._waits_for_step or bool(every and trainer.global_step % every == 0)
        self._save_or_stop(trainer, is_due)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        INTERRUPTION.install()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        INTERRUPTION.install()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_fit_validation(trainer):
            # The gradients of a part of a step are in no checkpoint.
            self._waits_for_step = is_within_step(trainer)
            # At the end of an epoch, ModelCheckpoint may come later than this.
            if not self._waits_for_step and not trainer.is_last_batch:
                self._save_or_stop(trainer, is_due=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_or_stop(trainer, is_due=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        INTERRUPTION.defer(False)

    def on_exception(self, *_: Any) -> None:
        INTERRUPTION.deferring = False

    def _save_or_stop(self, trainer: Trainer, is_due: bool) -> None:
        """Save if it is due, or if a rank has received a signal; in that case, stop."""
        received = torch.tensor(INTERRUPTION.received or 0, device=trainer.strategy.root_device)
        if trainer.world_size > 1:
            received = trainer.strategy.reduce(received, reduce_op="max")
        if is_due or received:
            self._save(trainer)
        if received:
            raise Interrupted(int(received))

    def _save(self, trainer: Trainer) -> None:
        self._waits_for_step = False
        if trainer.global_step == self._saved_step or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if trainer.is_global_zero and self.path.is_file():
            keep_previous(self.path)
        trainer.save_checkpoint(self.path)
        self._saved_step = trainer.global_step


def keep_previous(path: Path) -> None:
    """Give a file the second name `previous.ckpt`: it keeps its first one until it is replaced."""
    draft = path.with_name(f".{PREVIOUS_CHECKPOINT}.draft")
    try:
        draft.unlink(missing_ok=True)
        os.link(path, draft)
        os.replace(draft, path.with_name(PREVIOUS_CHECKPOINT))
    except OSError as error:  # There are file systems without links, and full ones.
        log.warning("%s: the checkpoint before is not kept: %s", path, error.strerror or error)


def is_within_step(trainer: Trainer) -> bool:
    """Return whether further batches belong to the optimizer's current step."""
    return trainer.fit_loop._should_accumulate()


def is_followed_by_validation(trainer: Trainer) -> bool:
    """Return whether a validation follows the current batch, or the run's last validation does."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher) or (
        trainer.enable_validation and trainer.global_step >= trainer.estimated_stepping_batches
    )
