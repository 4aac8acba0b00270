"""Callbacks that inspect the model during training without changing the training."""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from attention_zoo.errors import UserError, check_positive
from attention_zoo.tasks.training.callbacks.triggers import is_fit_validation
from attention_zoo.tasks.training.strategies import ShardedStrategy

# Their ranks hold a piece of the weights each.
SHARDING_STRATEGIES = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)


class InspectionCallback(Callback):
    """A callback that inspects the model on rank zero, at validations and at the end of training.

    It skips the last validation of the run, since the end of training inspects the final weights.
    After the training it prints its share of the training's time.

    Args:
        every_n_validations: inspect at every n-th validation; the end of training always does.
            None: at the end only.

    Raises:
        UserError: `every_n_validations` is below 1; in a fit, a strategy of others that shards the
            model.
    """

    label: ClassVar[str]  # its name in the printed line

    def __init__(self, *, every_n_validations: int | None) -> None:
        if every_n_validations is not None:
            check_positive(every_n_validations=every_n_validations)
        self.every_n_validations = every_n_validations
        self.seconds = 0.0  # time of the inspections
        self._validations = 0

    @abstractmethod
    def inspect(self, trainer: Trainer, task: Any) -> None:
        """Inspect the weights as they are, in evaluation mode and without gradients."""

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            InspectionCallback.check_training(self, trainer, pl_module)
            self._started, self.seconds = time.perf_counter(), 0.0

    def check_training(self, trainer: Trainer, task: Any) -> None:
        """Raise UserError for a training whose model this cannot inspect.

        The task may be on the meta device, and the data need not be prepared.
        """
        if isinstance(trainer.strategy, SHARDING_STRATEGIES):
            raise UserError(
                f"{type(trainer.strategy).__name__} keeps a piece of the weights on each rank, but "
                f"{type(self).__name__} runs the model on rank zero alone: train with "
                "trainer=fsdp, trainer=tensor_parallel or trainer=ddp."
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_fit_validation(trainer):
            return
        self._validations += 1
        running = trainer.global_step < trainer.estimated_stepping_batches
        if running and (every := self.every_n_validations) and self._validations % every == 0:
            self.run_on_rank_zero(self.inspect, trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.run_on_rank_zero(self.inspect, trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self.seconds and trainer.is_global_zero:
            share = self.seconds / (time.perf_counter() - self._started)
            print(f"{self.label}  {self.seconds:.1f} s, {share:.1%} of the training's time")

    def run_on_rank_zero(
        self, inspect: Callable[[Trainer, Any], None], trainer: Trainer, task: LightningModule
    ) -> None:
        """Call an inspection on rank zero, with the whole model, and count its time."""
        task = whole_module(trainer, task)
        if trainer.is_global_zero:
            with self.timed(task), evaluation_mode(task):
                inspect(trainer, task)

    @contextmanager
    def timed(self, task: LightningModule) -> Iterator[None]:
        """Add the time in this context to `seconds`."""
        if task.device.type == "cuda":
            torch.cuda.synchronize(task.device)  # Queued training steps do not count.
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started


def whole_module(trainer: Trainer, module: LightningModule) -> LightningModule:
    """Return a module that one rank can run alone: a copy if ranks have shares of it.

    All ranks have to call this.
    """
    strategy = trainer.strategy
    return strategy.gather_task() if isinstance(strategy, ShardedStrategy) else module


@contextmanager
def evaluation_mode(task: LightningModule) -> Iterator[None]:
    """Switch to evaluation mode without gradients; restore modes and random states afterwards."""
    modes = {module: module.training for module in task.modules()}
    devices = [task.device] if task.device.type == "cuda" else []
    task.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
