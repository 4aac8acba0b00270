"""How callbacks look at a model in the middle of training without disturbing it."""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from attention_zoo.errors import UserError

# Of these, no rank can run the model alone.
SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)


class InspectionCallback(Callback):
    """Looks at the model with rank zero, at validations and at the end of training.

    The last validation of the run is left out: the end of training looks again, at the weights
    that are kept. When all is done, a line tells how much of the training's time it took.

    Args:
        every_n_validations: look at every n-th validation; the end of training always does. None:
            at the end only.

    Raises:
        UserError: `every_n_validations` is below 1; in a fit, a strategy that shards the model.
    """

    # What the line calls it.
    label: ClassVar[str]

    def __init__(self, *, every_n_validations: int | None) -> None:
        if every_n_validations is not None and every_n_validations < 1:
            raise UserError(f"every_n_validations must be at least 1, got {every_n_validations}.")
        self.every_n_validations = every_n_validations
        self.seconds = 0.0  # of the training, spent looking
        self._validations = 0

    @abstractmethod
    def look(self, trainer: Trainer, task: Any) -> None:
        """At the weights as they are. The model is in evaluation mode, without gradients."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if isinstance(trainer.strategy, SHARDED):
            raise UserError(
                f"{type(trainer.strategy).__name__} keeps a piece of the weights on each rank, and "
                f"{type(self).__name__} looks with rank zero alone: train with strategy=ddp, or "
                "without it."
            )
        self._started, self.seconds = time.perf_counter(), 0.0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._validations += 1
        running = trainer.global_step < trainer.estimated_stepping_batches
        every = self.every_n_validations
        if running and every is not None and self._validations % every == 0:
            self.look_with(self.look, trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.look_with(self.look, trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self.seconds and trainer.is_global_zero:
            share = self.seconds / (time.perf_counter() - self._started)
            print(f"{self.label}  {self.seconds:.1f} s, {share:.1%} of the training's time")

    def look_with(
        self, look: Callable[[Trainer, Any], None], trainer: Trainer, task: LightningModule
    ) -> None:
        """Call this on rank zero, undisturbing, and count its time."""
        if trainer.is_global_zero:
            with self.counted(task), undisturbed(task):
                look(trainer, task)

    @contextmanager
    def counted(self, task: LightningModule) -> Iterator[None]:
        """Counts the time as spent looking."""
        if task.device.type == "cuda":
            torch.cuda.synchronize(task.device)  # What training has queued is not ours.
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started


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
