"""The newest state of a run, to resume from; also where Ctrl-C ends the run."""

import signal
import sys
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from attention_zoo.tasks.run_folder import LAST_CHECKPOINT


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` after every validation and every epoch, and when Ctrl-C ends the training.

    `ModelCheckpoint(save_last=True)` writes its last one only where the best one improves. This is
    a `Checkpoint` because Lightning runs those after all other callbacks.

    Ctrl-C ends the training after the step in which it comes, as a step that is half done cannot be
    resumed; a second one ends it at once. Of several ranks each may hear of it in another step, so
    they ask each other, every `log_every_n_steps` steps.

    Args:
        dirpath: folder of `last.ckpt`.
    """

    def __init__(self, *, dirpath: str | Path) -> None:
        self.path = Path(dirpath) / LAST_CHECKPOINT
        self._saved_step = -1
        self._interrupted = False
        self._handler: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._interrupt)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        interrupted = self._interrupted
        if trainer.world_size > 1:
            every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
            if not every or trainer.global_step % every:
                return
            interrupted = trainer.strategy.reduce_boolean_decision(interrupted, all=False)
        if interrupted:
            self._save(trainer)
            raise KeyboardInterrupt

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._restore()

    def _interrupt(self, *_: Any) -> None:
        self._interrupted = True
        self._restore()
        print("\nStopping after this step; Ctrl-C again stops at once.", file=sys.stderr)

    def _restore(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step != self._saved_step and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path)
            self._saved_step = trainer.global_step
