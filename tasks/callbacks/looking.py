"""How callbacks look at a model in the middle of training without disturbing it."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from attention_zoo.errors import UserError


class Look(Callback):
    """Looks at the model with rank zero, at validations and at the end of training.

    The last validation of the run is left out: the end of training looks again, at the weights
    that are kept.

    Args:
        every_n_validations: look at every n-th validation; the end of training always does.

    Raises:
        UserError: `every_n_validations` is below 1.
    """

    def __init__(self, *, every_n_validations: int) -> None:
        if every_n_validations < 1:
            raise UserError(f"every_n_validations must be at least 1, got {every_n_validations}.")
        self.every_n_validations = every_n_validations
        self._validations = 0

    @abstractmethod
    def look(self, trainer: Trainer, task: Any) -> None:
        """At the weights as they are. The model is in evaluation mode, without gradients."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._validations += 1
        running = trainer.global_step < trainer.estimated_stepping_batches
        if running and self._validations % self.every_n_validations == 0:
            self._look(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, task: LightningModule) -> None:
        if trainer.is_global_zero:
            with undisturbed(task):
                self.look(trainer, task)


@contextmanager
def undisturbed(task: LightningModule) -> Iterator[None]:
    """Evaluation mode without gradients; modes and random states are put back afterwards."""
    modes = {module: module.training for module in task.modules()}
    devices = [task.device] if task.device.type == "cuda" else []
    task.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
