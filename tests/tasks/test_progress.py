"""Progress, throughput and loss curves of a training."""

import io
import math
import types
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from rich.console import Console

from attention_zoo.tasks.training.callbacks.last_checkpoint import LastCheckpoint
from attention_zoo.tasks.training.callbacks.progress import Progress
from attention_zoo.tasks.training.callbacks.throughput import History, Throughput
from tests.tasks.training import QUIET, Data, Spy, StopAfterTwoEpochs, Task, fit, trainer

pytestmark = QUIET


def screen(*, terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def test_without_a_terminal_there_is_a_line_every_tenth():
    console = screen(terminal=False)
    task = fit(Progress(console=console), data=Data(10), max_epochs=2, enable_progress_bar=True)
    printed = console.file.getvalue().splitlines()
    lines = [line for line in printed if "val/loss" not in line]
    assert len(lines) == 10
    validations = [line for line in printed if "val/loss" in line]
    assert [line.split()[1] for line in validations] == ["10", "20"]
    assert (
        printed[-1]
        == validations[-1]
        == (f"step 20  val/loss {task.trainer.callback_metrics['val/loss']:.4f}")
    )
    for number, line in enumerate(lines, start=1):
        assert line.startswith(f"step {2 * number}/20  loss ")
        assert "tokens/s" in line and line.endswith("left")
        assert line.isprintable()


def test_the_loss_shown_is_that_of_the_step():
    losses = []

    class Spied(Task):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            losses.append(self.last_step.loss.item() / self.last_step.tokens.item())
            # Lightning divides it, and an auxiliary loss of the attention may be part of it.
            return loss + 100.0

    console = screen(terminal=False)
    fit(
        Progress(console=console),
        task=Spied(),
        max_epochs=1,
        accumulate_grad_batches=2,
        enable_progress_bar=True,
    )
    lines = console.file.getvalue().splitlines()
    shown = [float(line.split()[3]) for line in lines if "val/loss" not in line]
    assert shown == pytest.approx([losses[1], losses[3]], abs=1e-4)


def test_in_a_terminal_there_is_one_bar():
    console = screen(terminal=True)
    fit(Progress(console=console, refresh_seconds=0.0), enable_progress_bar=True)
    text = console.file.getvalue()
    assert "12/12" in text and "tokens/s" in text
    assert text.rstrip("\n").count("\n") <= 3  # the sanity check's bar and training's


def test_evaluation_shows_a_bar():
    console = screen(terminal=True)
    run = trainer(Progress(console=console, refresh_seconds=0.0), enable_progress_bar=True)
    run.test(Task(), Data(), verbose=False)
    assert "testing" in console.file.getvalue() and "4/4" in console.file.getvalue()


def test_the_bar_is_closed_when_training_fails():
    class Fails(Callback):
        def on_train_batch_end(self, *args):
            raise RuntimeError("on purpose")

    bar = Progress(console=screen(terminal=True))
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(bar, Fails(), enable_progress_bar=True)
    assert not bar.console._live_stack


def test_tokens_rate_and_learning_rate_are_logged_every_n_steps():
    spy = Spy()
    fit(Throughput(), spy, max_epochs=1, data=Data(8))
    logged = {step: metrics for step, metrics in spy.logged if step % 2 == 0}
    assert [logged[step]["train/tokens"].item() for step in (2, 4, 6, 8)] == [64, 128, 192, 256]
    # Warm-up of 2, then 6 steps of decay: the rates of steps 2, 4, 6 and 8.
    rates = [logged[step]["train/learning_rate"].item() for step in (2, 4, 6, 8)]
    assert rates == pytest.approx([0.1, 0.1 * 5 / 6, 0.1 * 3 / 6, 0.1 * 1 / 6])
    assert all(logged[step]["train/tokens_per_second"] > 0 for step in logged)


def test_an_interval_of_zero_logs_nothing():
    spy, throughput = Spy(), Throughput()
    fit(throughput, History(throughput), spy, max_epochs=1, log_every_n_steps=0)
    assert throughput.tokens == 4 * 32
    assert all("train/tokens" not in metrics for _, metrics in spy.logged)


def test_metrics_reach_the_logger(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    fit(Throughput(), logger=logger, max_epochs=1)
    header, *rows = Path(logger.log_dir, "metrics.csv").read_text().splitlines()
    for name in ("train/tokens_per_second", "train/tokens", "train/learning_rate"):
        column = header.split(",").index(name)
        assert sum(bool(row.split(",")[column]) for row in rows) == 2


def test_accumulated_batches_count_once_each():
    spy, throughput = Spy(), Throughput()
    fit(throughput, spy, max_epochs=1, data=Data(8), accumulate_grad_batches=2)
    assert throughput.tokens == 8 * 32
    assert spy.logged[-1][1]["train/tokens"] == 8 * 32


def test_validation_is_not_counted_as_time(monkeypatch):
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        "attention_zoo.tasks.training.callbacks.throughput.time",
        types.SimpleNamespace(perf_counter=lambda: clock.now),
    )

    class Clock(Callback):
        def on_train_batch_end(self, *args):
            clock.now += 1.0

        def on_validation_batch_end(self, *args):
            clock.now += 100.0

    spy = Spy()
    # The clock ticks first, so that a step takes a second.
    fit(Clock(), Throughput(), spy, data=Data(4), val_check_interval=1, num_sanity_val_steps=0)
    rates = [m["train/tokens_per_second"].item() for step, m in spy.logged if step % 2 == 0]
    assert rates == pytest.approx([32.0] * 6)


def test_a_resumed_run_goes_on_counting(tmp_path):
    fit(Throughput(), LastCheckpoint(dirpath=tmp_path), max_epochs=2)
    throughput = Throughput()
    fit(throughput, max_epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert throughput.tokens == 3 * 4 * 32


def test_the_rate_is_that_of_training_proper_and_of_the_whole_run(monkeypatch, tmp_path):
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        "attention_zoo.tasks.training.callbacks.throughput.time",
        types.SimpleNamespace(perf_counter=lambda: clock.now),
    )

    class Clock(Callback):
        def __init__(self, seconds):
            self.seconds = seconds

        def on_train_batch_end(self, *args):
            clock.now += self.seconds

        def on_validation_batch_end(self, *args):
            clock.now += 100.0

        def on_train_end(self, *args):
            clock.now += 100.0

    first, second = Throughput(), Throughput()
    options = {"num_sanity_val_steps": 0}
    fit(Clock(1.0), first, LastCheckpoint(dirpath=tmp_path), max_epochs=1, **options)
    assert first.seconds == 4.0 and first.tokens_per_second == 32.0
    checkpoint = tmp_path / "last.ckpt"
    fit(Clock(3.0), second, max_epochs=2, ckpt_path=checkpoint, **options)
    assert second.seconds == 16.0 and second.tokens_per_second == 16.0


def history(**options):
    """Return the History of a run, and a Spy with what was logged."""
    spy, throughput = Spy(), Throughput()
    curve = History(throughput)

    class Logged(Task):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            self.log("train/loss", self.last_step.loss)
            return loss

    torch.manual_seed(0)
    task = Logged()
    task.model.dropout.p = 0.0
    fit(throughput, curve, spy, *options.pop("callbacks", []), task=task, **options)
    return curve, spy


def test_the_curve_has_a_point_where_losses_are_logged():
    curve, spy = history(max_epochs=2)
    logged = {step: metrics["train/loss"].item() for step, metrics in spy.logged}
    expected = [(step, 32 * step, logged[step]) for step in (2, 4, 6, 8)]
    assert curve.points["train/loss"] == expected
    assert [point[:2] for point in curve.points["val/loss"]] == [(4, 128), (8, 256)]


def test_a_resumed_run_has_the_whole_curve(tmp_path):
    whole, _ = history(max_epochs=3)
    history(callbacks=[LastCheckpoint(dirpath=tmp_path), StopAfterTwoEpochs()])
    resumed, _ = history(max_epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert len(whole.points["train/loss"]) == 6
    assert resumed.points == whole.points


def test_a_long_curve_is_downsampled_and_ends_where_the_run_ends():
    curve = History(Throughput())
    curve.points["train/loss"] = [(step, 10 * step, 1 / step) for step in range(1, 1002)]
    curve.points["val/loss"] = [(1, 10, math.nan), (2, 20, math.inf), (3, 30, 0.5)]
    curves = curve.loss_curves()
    train = curves["train/loss"]
    assert 300 < len(train) <= 400 and train[-1] == [1001, 10010, 1 / 1001]
    assert {later[0] - sooner[0] for sooner, later in pairwise(train)} == {3}
    assert curves["val/loss"] == [[1, 10, None], [2, 20, None], [3, 30, 0.5]]
    assert History(Throughput()).loss_curves() == {"train/loss": [], "val/loss": []}
