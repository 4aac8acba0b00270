"""The newest state of a run, to resume from; Ctrl-C saves it too."""

import signal
import sys
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from attention_zoo.tasks.run_folder import LAST_CHECKPOINT
from attention_zoo.tasks.training.callbacks.triggers import is_fit_validation, is_log_step


class LastCheckpoint(Checkpoint):
    """Write `last.ckpt` after every validation and every epoch, and when Ctrl-C ends the training.

    `ModelCheckpoint(save_last=True)` writes its last one only when the best one improves. This is
    a `Checkpoint` because Lightning runs those after all other callbacks.

    Ctrl-C ends the training after the current step, since a run cannot resume in the middle of a
    step. A second Ctrl-C ends it at once. Several ranks may receive the signal in different steps,
    so they agree on it every `log_every_n_steps` steps.

    Args:
        dirpath: folder of `last.ckpt`.
    """

    def __init__(self, *, dirpath: str | Path) -> None:
        self.path = Path(dirpath) / LAST_CHECKPOINT
        self._saved_step = -1
        self._interrupted = False
        self._previous_handler: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGINT, self._handle_interrupt)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        interrupted = self._interrupted
        if trainer.world_size > 1:
            if not is_log_step(trainer, trainer.global_step):
                return
            interrupted = trainer.strategy.reduce_boolean_decision(interrupted, all=False)
        if interrupted:
            self._save(trainer)
            raise KeyboardInterrupt

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_fit_validation(trainer):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore_handler()

    def on_exception(self, *_: Any) -> None:
        self._restore_handler()

    def _handle_interrupt(self, *_: Any) -> None:
        self._interrupted = True
        self._restore_handler()
        print("\nStopping after this step; Ctrl-C again stops at once.", file=sys.stderr)

    def _restore_handler(self) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step != self._saved_step and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path)
            self._saved_step = trainer.global_step
