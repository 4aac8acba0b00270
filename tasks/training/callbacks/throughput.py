"""Tokens per second, tokens seen so far, and the learning rate of the step."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from attention_zoo.tasks.training.task import StepOutput


class Throughput(Callback):
    """Log `train/tokens_per_second`, `train/tokens` and `train/learning_rate`.

    They are logged every `trainer.log_every_n_steps` steps, with the tokens of all ranks. Time
    between training batches, such as that of validation, does not count. A GPU is synchronised only
    when values are logged.

    Checkpoints hold `tokens` and `seconds`, so that a resumed run continues to count, and
    `tokens_per_second` is that of the whole run.
    """

    def __init__(self) -> None:
        self._total_tokens = 0  # of all ranks, up to the last reduction
        self._pending_tokens: Tensor | int = 0  # of this rank, since then
        self._world_size = 1
        self._window_tokens = 0
        self._window_seconds = 0.0
        self._earlier_seconds = 0.0  # before the window
        self._started: float | None = None  # while a training batch runs
        self._logged_step = 0
        self._learning_rate = 0.0

    @property
    def tokens(self) -> int:
        """Target tokens seen by all ranks; since the last reduction those of this rank × ranks."""
        return int(self._total_tokens + self._pending_tokens * self._world_size)

    @property
    def seconds(self) -> float:
        """Seconds of training batches."""
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._earlier_seconds + self._window_seconds + running

    @property
    def tokens_per_second(self) -> float:
        """Target tokens per second over the whole run."""
        return self.tokens / max(self.seconds, 1e-9)

    def state_dict(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._total_tokens = state_dict["tokens"]
        self._earlier_seconds = state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._world_size = trainer.world_size
        self._pending_tokens = self._window_tokens = 0
        self._window_seconds, self._started = 0.0, None
        self._logged_step = trainer.global_step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._started is None:
            self._started = time.perf_counter()
        # Read here, since the schedule steps before the batch ends.
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        task: Any = pl_module
        output: StepOutput = task.last_step
        self._pending_tokens += output.tokens
        step = trainer.global_step
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step == self._logged_step or step % every:
            return
        self._logged_step = step
        self._reduce(trainer)
        self._stop()
        pl_module.log_dict(
            {
                "train/tokens_per_second": self._window_tokens / max(self._window_seconds, 1e-9),
                "train/tokens": float(self.tokens),
                "train/learning_rate": float(self._learning_rate),
            }
        )
        self._earlier_seconds += self._window_seconds
        self._window_tokens, self._window_seconds = 0, 0.0
        self._started = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The checkpoint at the end of the validation shall hold the exact count.
        self._reduce(trainer)
        self._stop()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reduce(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._started is not None:
            self._window_seconds += time.perf_counter() - self._started
            self._started = None

    def _reduce(self, trainer: Trainer) -> None:
        tokens = int(self._pending_tokens)  # Synchronises a GPU.
        if trainer.world_size > 1:
            count = torch.as_tensor(tokens, device=trainer.strategy.root_device).clone()
            # Every rank takes the same number of steps, so all of them reach this call.
            tokens = int(trainer.strategy.reduce(count, reduce_op="sum"))
        self._total_tokens += tokens
        self._window_tokens += tokens
        self._pending_tokens = 0
