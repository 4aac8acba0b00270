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
from attention_zoo.tasks.training.ranks import gather
from attention_zoo.tasks.training.restoring import rank_state
from attention_zoo.tasks.training.task import Task

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Write `last.ckpt` after every validation, every epoch and, by choice, every n-th step.

    The one before it stays as `previous.ckpt`. `ModelCheckpoint(save_last=True)` writes its last
    one only when the best one improves. This is a `Checkpoint` because Lightning runs those after
    all other callbacks.

    SIGINT and SIGTERM end the training after the current step, or before the next batch of the
    validation that follows it. `last.ckpt` is written, then `Interrupted` raised. A run that goes
    on from it begins with the whole validation. All ranks stop at the same batch, whichever of them
    gets the signal. A validation between the batches of one step is not cut off, as the gradients
    so far are in no checkpoint.

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
        self._uncounted_batches = 0.0  # of a validation that can be cut off

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning has set its own handler of SIGTERM, which ends a training and saves nothing.
        INTERRUPTION.defer(True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        # What follows a batch belongs to the state: it is saved when that is over.
        if is_within_step(trainer):
            return
        if is_followed_by_validation(trainer):
            if isinstance(pl_module, Task):
                state = rank_state(trainer, pl_module.running_sums)
                pl_module.state_before_validation = state
            return
        if trainer.is_last_batch:
            return
        every = self.every_n_steps
        is_due = self._waits_for_step or bool(every and trainer.global_step % every == 0)
        self._save_or_stop(trainer, is_due)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        INTERRUPTION.install()
        self._uncounted_batches = 0.0
        if (
            is_fit_validation(trainer)
            and isinstance(pl_module, Task)
            and not is_within_step(trainer)
        ):
            # Loaders of others may have fewer batches on some ranks.
            self._uncounted_batches = min(gather(trainer, sum(trainer.num_val_batches)))

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any
    ) -> None:
        if self._uncounted_batches <= 0:
            return
        self._uncounted_batches -= 1
        if received := received_signal(trainer):
            task: Any = pl_module
            task.is_validation_due = True
            self._save(trainer)
            raise Interrupted(received)

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
        received = received_signal(trainer)
        if is_due or received:
            self._save(trainer)
        if received:
            raise Interrupted(received)

    def _save(self, trainer: Trainer) -> None:
        self._waits_for_step = False
        if trainer.global_step == self._saved_step or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if trainer.is_global_zero and self.path.is_file():
            keep_previous(self.path)
        trainer.save_checkpoint(self.path)
        self._saved_step = trainer.global_step


def received_signal(trainer: Trainer) -> int:
    """Return the number of a signal that a rank has received, or 0. All ranks have to call this."""
    received = INTERRUPTION.received or 0
    if trainer.world_size > 1:
        number = torch.tensor(received, device=trainer.strategy.root_device)
        received = int(trainer.strategy.reduce(number, reduce_op="max"))
    return received


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
