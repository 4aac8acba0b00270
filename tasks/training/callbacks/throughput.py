"""Tokens per second, tokens seen so far, and the learning rate of the step."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Logs `train/tokens_per_second`, `train/tokens` and `train/learning_rate`.

    They are logged every `trainer.log_every_n_steps` steps, summed over all ranks. Validation, and
    whatever else happens until the next training batch starts, is not counted as time. The device
    is waited for then only: on a GPU the rate is that of the steps handed over, which over a window
    of steps is the rate of those done.

    `tokens` and `seconds` are saved in checkpoints, so that a resumed run goes on counting, and
    `tokens_per_second` is that of the whole run.
    """

    def __init__(self) -> None:
        self._total = 0  # of all ranks, up to the last reduction
        self._pending = 0  # of this rank, since then
        self._ranks = 1
        self._window_tokens = 0
        self._window_seconds = 0.0
        self._before = 0.0  # seconds, up to the window
        self._started: float | None = None
        self._logged_step = 0
        self._learning_rate = 0.0

    @property
    def tokens(self) -> int:
        """Target tokens trained on, by all ranks; between two reductions the ranks count alike."""
        return int(self._total + self._pending * self._ranks)

    @property
    def seconds(self) -> float:
        """Of training proper, as the class says."""
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._before + self._window_seconds + running

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    def state_dict(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._total, self._before = state_dict["tokens"], state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ranks = trainer.world_size
        self._pending = self._window_tokens = 0
        self._window_seconds, self._started = 0.0, None
        self._logged_step = trainer.global_step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._started is None:
            self._started = time.perf_counter()
        # Read before the step: the schedule moves on before the batch ends.
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._pending += outputs["tokens"]
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
        self._before += self._window_seconds
        self._window_tokens, self._window_seconds = 0, 0.0
        self._started = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Checkpoints are written at the end of a validation: let them hold the exact count.
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
        tokens = int(self._pending)  # Waits for the forward pass of the last step on a GPU.
        if trainer.world_size > 1:
            count = torch.as_tensor(tokens, device=trainer.strategy.root_device).clone()
            # Every rank takes the same number of steps, so all of them come by here.
            tokens = int(trainer.strategy.reduce(count, reduce_op="sum"))
        self._total += tokens
        self._window_tokens += tokens
        self._pending = 0
