"""Progress of a run: a bar in a terminal, a line now and then anywhere else."""

import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from torch import Tensor

from attention_zoo.errors import check_not_negative
from attention_zoo.tasks.data.base import data_ranks
from attention_zoo.tasks.training.callbacks.triggers import is_fit_validation
from attention_zoo.tasks.training.task import StepOutput


class Progress(ProgressBar):
    """Show step, loss, tokens per second and time left, of the whole run.

    The loss is the task's loss of the step, per target token. It is fetched from the device only
    when something is drawn. Drawing happens in the training thread, so `refresh_seconds` limits its
    share of the time.

    Args:
        refresh_seconds: seconds between two drawings in a terminal.
        line_seconds: seconds between two lines, where stdout is no terminal; every tenth of the run
            and every validation print a line as well.
        console: where to write; stdout by default.

    Raises:
        UserError: seconds below 0.
    """

    def __init__(
        self,
        *,
        refresh_seconds: float = 0.5,
        line_seconds: float = 30.0,
        console: Console | None = None,
    ) -> None:
        super().__init__()
        check_not_negative(refresh_seconds=refresh_seconds, line_seconds=line_seconds)
        self.refresh_seconds, self.line_seconds = refresh_seconds, line_seconds
        self.console = console or Console()
        self.is_enabled = True
        self._bar: RichProgress | None = None

    def disable(self) -> None:
        self.is_enabled = False

    def enable(self) -> None:
        self.is_enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self.is_enabled:
            self.console.print(*args, **{"highlight": False, "soft_wrap": True} | kwargs)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._total_steps = trainer.estimated_stepping_batches
        self._first_step = trainer.global_step
        self._drawn_step = trainer.global_step
        self._started = self._drawn_at = time.perf_counter()
        self._window_started: float | None = None
        self._window_tokens: Tensor | int = 0
        self._open("training", self._total_steps)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self._window_started is None:
            self._window_started, self._window_tokens = time.perf_counter(), 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not self.is_enabled:
            return
        task: Any = pl_module
        output: StepOutput = task.last_step
        self._window_tokens += output.tokens
        now, step = time.perf_counter(), trainer.global_step
        if self._is_due(now, step):
            loss = float(output.loss / output.tokens.clamp(min=1))  # An idle rank has no token.
            self._draw(now, step, loss, data_ranks(trainer)["world_size"])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._window_started = None
        # The bar of a training stays as it is.
        if self._bar is None:
            self._open("validating", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._bar is None or is_fit_validation(trainer):  # The bar of a training counts steps.
            return
        self._bar.advance(self._task)
        now = time.perf_counter()
        if now - self._drawn_at >= self.refresh_seconds:
            self._bar.refresh()
            self._drawn_at = now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = trainer.callback_metrics.get("val/loss")
        if (
            loss is None
            or not self.is_enabled
            or self._bar is not None
            or not is_fit_validation(trainer)
        ):
            return
        line = f"step {trainer.global_step}  val/loss {float(loss):.4f}"
        self.console.print(line, highlight=False, soft_wrap=True)

    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.on_validation_batch_end(trainer)

    def on_sanity_check_end(self, *_: Any) -> None:
        self._close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("testing", sum(trainer.num_test_batches))

    def on_exception(self, *_: Any) -> None:
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def _is_due(self, now: float, step: int) -> bool:
        if step == self._drawn_step:
            return False
        if step == self._total_steps:
            return True
        if self._bar is not None:
            return now - self._drawn_at >= self.refresh_seconds
        tenth = step * 10 // self._total_steps > self._drawn_step * 10 // self._total_steps
        return tenth or now - self._drawn_at >= self.line_seconds

    def _draw(self, now: float, step: int, loss: float, world_size: int) -> None:
        assert self._window_started is not None  # a batch has started
        rate = self._window_tokens * world_size / max(now - self._window_started, 1e-9)
        step_seconds = (now - self._started) / (step - self._first_step)
        steps, status = f"{step}", f"loss {loss:.4f}  {rate:,.0f} tokens/s"
        if self._total_steps < float("inf"):
            steps += f"/{self._total_steps}"
            left = timedelta(seconds=round(step_seconds * (self._total_steps - step)))
            status += f"  {left} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=status)
            self._bar.refresh()
        else:
            self.console.print(f"step {steps}  {status}", highlight=False, soft_wrap=True)
        self._drawn_at, self._drawn_step = now, step
        self._window_started, self._window_tokens = now, 0

    def _open(self, description: str, total: float) -> None:
        """Open a bar if there is a terminal to draw it in."""
        if not self.is_enabled or not self.console.is_terminal:
            return
        self._close()
        self._drawn_at = time.perf_counter()
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[status]}"),
            console=self.console,
            auto_refresh=False,  # A thread would compete with training for a core.
        )
        self._task = self._bar.add_task(description, total=total, status="")
        self._bar.start()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
