"""A progress bar in a terminal, now and then a plain line anywhere else."""

import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars


class Progress(ProgressBar):
    """Step, loss, tokens per second and time left, of the whole run.

    The loss is the task's of the step, per target token: `training_step` returns the sum, as
    `task_loss`, and `tokens`.
    It is fetched from the device only when something is drawn; drawing happens in the training
    thread, so its share of the time is what `refresh_seconds` allows.

    Args:
        refresh_seconds: seconds between two drawings in a terminal.
        plain_seconds: seconds after which a plain line is due, where stdout is no terminal; every
            tenth of the run is due as well.
        console: where to write; stdout by default.
    """

    def __init__(
        self,
        *,
        refresh_seconds: float = 0.5,
        plain_seconds: float = 30.0,
        console: Console | None = None,
    ) -> None:
        super().__init__()
        self.refresh_seconds = refresh_seconds
        self.plain_seconds = plain_seconds
        self.console = console or Console()
        self.enabled = True
        self._bars: Bars | None = None

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self.enabled:
            self.console.print(*args, **kwargs)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._total = trainer.estimated_stepping_batches
        self._first_step = trainer.global_step
        self._start = self._drawn_at = time.perf_counter()
        self._drawn_step = trainer.global_step
        self._window_start: float | None = None
        self._tokens = 0
        if self.enabled and self.console.is_terminal:
            self._open("training", self._total)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._window_start is None:
            self._window_start, self._tokens = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.enabled:
            return
        self._tokens += outputs["tokens"]
        now, step = time.perf_counter(), trainer.global_step
        if self._is_due(now, step):
            loss = float(outputs["task_loss"]) / outputs["tokens"]
            self._draw(now, step, loss, trainer.world_size)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._window_start = None
        # Training's own bar stays, and waits.
        if self.enabled and self._bars is None and self.console.is_terminal:
            self._open("validating", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._advance(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.enabled and self.console.is_terminal:
            self._open("testing", sum(trainer.num_test_batches))

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._advance(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def _is_due(self, now: float, step: int) -> bool:
        if step == self._drawn_step:
            return False
        if step == self._total:
            return True
        if self._bars is not None:
            return now - self._drawn_at >= self.refresh_seconds
        tenth = step * 10 // self._total > self._drawn_step * 10 // self._total
        return tenth or now - self._drawn_at >= self.plain_seconds

    def _draw(self, now: float, step: int, loss: float, ranks: int) -> None:
        assert self._window_start is not None  # a batch has started
        rate = self._tokens * ranks / max(now - self._window_start, 1e-9)
        pace = (now - self._start) / (step - self._first_step)
        status = f"loss {loss:.4f}  {rate:,.0f} tokens/s"
        steps = f"{step}"
        if self._total < float("inf"):
            steps = f"{step}/{self._total}"
            status += f"  {timedelta(seconds=round(pace * (self._total - step)))} left"
        if self._bars is not None:
            self._bars.update(self._task, completed=step, status=status)
            self._bars.refresh()
        else:
            self.console.print(f"step {steps}  {status}", highlight=False, soft_wrap=True)
        self._drawn_at, self._drawn_step = now, step
        self._window_start, self._tokens = now, 0

    def _open(self, description: str, total: float) -> None:
        self._close()
        self._drawn_at = time.perf_counter()
        # Nothing is drawn by a thread of its own: it would compete with training for a core.
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[status]}"),
            console=self.console,
            auto_refresh=False,
        )
        self._task = self._bars.add_task(description, total=total, status="")
        self._bars.start()

    def _advance(self, trainer: Trainer) -> None:
        """Count one batch of an evaluation outside training."""
        if self._bars is None or (trainer.state.fn == "fit" and not trainer.sanity_checking):
            return
        self._bars.advance(self._task)
        now = time.perf_counter()
        if now - self._drawn_at >= self.refresh_seconds:
            self._bars.refresh()
            self._drawn_at = now

    def _close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
