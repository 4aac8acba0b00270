"""Tokens per second, tokens seen so far, the learning rate, and the loss curves of a run."""

import math
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from attention_zoo.tasks.data.base import data_ranks
from attention_zoo.tasks.training.callbacks.triggers import is_fit_validation, is_log_step
from attention_zoo.tasks.training.task import StepOutput

MAX_POINTS = 400  # of a loss curve in `results.json`


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
        self._trainer: Trainer | None = None  # during a training
        self._total_seconds = 0.0  # up to the last stop of the clock
        self._started: float | None = None  # while a training batch runs
        self._logged = (0, 0, 0.0)  # step, tokens and seconds at the start or the last logging
        self._learning_rate = 0.0

    @property
    def tokens(self) -> int:
        """Return the target tokens that all ranks have seen.

        Since the last reduction, they are those of this rank × the number of ranks.
        """
        return int(self._total_tokens + self._pending_tokens * self._world_size)

    @property
    def seconds(self) -> float:
        """Return the seconds of training batches."""
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._total_seconds + running

    @property
    def tokens_per_second(self) -> float:
        """Return the target tokens per second over the whole run."""
        return self.tokens / max(self.seconds, 1e-9)

    def state_dict(self) -> dict[str, Any]:
        if self._trainer is not None:
            self._reduce(self._trainer)  # All ranks save at the same step.
        return {"tokens": self.tokens, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._total_tokens, self._total_seconds = state_dict["tokens"], state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._world_size, self._trainer = data_ranks(trainer)["world_size"], trainer
        self._pending_tokens, self._started = 0, None
        self._logged = trainer.global_step, self._total_tokens, self._total_seconds

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self._started is None:
            self._started = time.perf_counter()
        # Read here, since the schedule steps before the batch ends.
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        task: Any = pl_module
        output: StepOutput = task.last_step
        self._pending_tokens += output.tokens
        step, (logged_step, logged_tokens, logged_seconds) = trainer.global_step, self._logged
        if step == logged_step or not is_log_step(trainer, step):
            return
        self._reduce(trainer)
        self._stop()
        tokens, seconds = self._total_tokens, self._total_seconds
        pl_module.log_dict(
            {
                "train/tokens_per_second": (tokens - logged_tokens)
                / max(seconds - logged_seconds, 1e-9),
                "train/tokens": float(tokens),
                "train/learning_rate": float(self._learning_rate),
            }
        )
        self._logged = step, tokens, seconds
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
        self._total_seconds, self._started = self.seconds, None

    def _reduce(self, trainer: Trainer) -> None:
        tokens = int(self._pending_tokens)  # Synchronises a GPU.
        if trainer.world_size > 1:
            count = torch.as_tensor(tokens, device=trainer.strategy.root_device).clone()
            # Every rank takes the same number of steps, so all of them reach this call.
            tokens = int(trainer.strategy.reduce(count, reduce_op="sum"))
            # Ranks that divide the model count the same tokens.
            tokens = tokens * self._world_size // trainer.world_size
        self._total_tokens += tokens
        self._pending_tokens = 0


class History(Callback):
    """Record `train/loss` whenever it is logged, and `val/loss` at every validation.

    Checkpoints hold the points, so that a resumed run has the whole curve.

    Args:
        throughput: counts the tokens; it must come before this among the callbacks.
    """

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput
        # By loss: step, tokens seen by then, value.
        self.points: dict[str, list[tuple[int, int, float]]] = {"train/loss": [], "val/loss": []}

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.points = state_dict["points"]

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if is_log_step(trainer, trainer.global_step):
            self.add_point(trainer, "train/loss")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_fit_validation(trainer):
            self.add_point(trainer, "val/loss")

    def add_point(self, trainer: Trainer, name: str) -> None:
        """Add a point, unless the step has one."""
        points, step = self.points[name], trainer.global_step
        value = trainer.callback_metrics.get(name)
        if value is not None and not (points and points[-1][0] == step):
            points.append((step, self.throughput.tokens, value.item()))

    def loss_curves(self) -> dict[str, list[list[int | float | None]]]:
        """Return the points of each loss, [step, tokens, value], at even intervals up to the last.

        A value that is not finite is None.
        """
        curves: dict[str, list[list[int | float | None]]] = {}
        for name, points in self.points.items():
            stride = max(1, math.ceil(len(points) / MAX_POINTS))
            curves[name] = [
                [step, tokens, value if math.isfinite(value) else None]
                for step, tokens, value in points[::-stride][::-1]
            ]
        return curves
