"""The newest state of a run, to resume from."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` after every validation and every epoch.

    `ModelCheckpoint(save_last=True)` writes its last one only where the best one improves. This is
    a `Checkpoint` because Lightning runs those after all other callbacks.

    Args:
        dirpath: folder of `last.ckpt`.
    """

    def __init__(self, *, dirpath: str | Path) -> None:
        self.path = Path(dirpath) / "last.ckpt"
        self._saved_step = -1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step != self._saved_step and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path)
            self._saved_step = trainer.global_step
