import io
import json
import math
import os
import subprocess
import sys
import types
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from attention_zoo.errors import UserError
from attention_zoo.tasks.callbacks.attention_maps import AttentionMaps
from attention_zoo.tasks.callbacks.averaging import CheckpointAveraging
from attention_zoo.tasks.callbacks.history import History
from attention_zoo.tasks.callbacks.last_checkpoint import LastCheckpoint
from attention_zoo.tasks.callbacks.looking import undisturbed
from attention_zoo.tasks.callbacks.progress import Progress
from attention_zoo.tasks.callbacks.samples import Samples
from attention_zoo.tasks.callbacks.throughput import Throughput
from attention_zoo.tasks.optimizers import adamw, muon
from attention_zoo.tasks.reading import AttentionReading
from attention_zoo.tasks.schedules import linear

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class Task(LightningModule):
    """A regression with dropout, so that modes and random states matter."""

    words = ("source", "translation")

    def __init__(self, optimizer=adamw):
        super().__init__()
        self.optimizer = optimizer
        self.model = nn.Sequential()
        self.model.add_module("hidden", nn.Linear(4, 4))
        self.model.add_module("dropout", nn.Dropout(0.5))
        self.model.add_module("head", nn.Linear(4, 1))
        self.seen = []

    def training_step(self, batch, index):
        self.seen.append(batch[0, 0].item())
        loss = self.model(batch).square().sum()
        return {"loss": loss, "task_loss": loss.detach(), "tokens": batch.numel()}

    def validation_step(self, batch, index):
        self.log("val/loss", self.model(batch).square().mean())

    def test_step(self, batch, index):
        self.log("test/loss", self.model(batch).square().mean())

    def configure_optimizers(self):
        optimizer = self.optimizer(self.model, lr=0.1)
        steps = self.trainer.estimated_stepping_batches
        schedule = linear(optimizer, warmup_steps=2, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def respond(self, lines):
        assert not self.model.dropout.training and not torch.is_grad_enabled()
        torch.rand(3)
        return [line.upper() for line in lines]

    def attend(self, line):
        assert not self.model.dropout.training and not torch.is_grad_enabled()
        torch.rand(3)
        source, target = line.split(), [*line.split(), "end"]
        maps = torch.rand(2, len(target), len(source)).softmax(-1)
        return AttentionReading(source, target, {"cross": [maps, maps]})


class Data(LightningDataModule):
    probes = ("one two", "three four five", "six")
    probe_references = ("um dois", "três quatro cinco", "seis")

    def __init__(self, batches=4):
        super().__init__()
        self.rows = torch.arange(batches * 8.0).view(-1, 1).expand(-1, 4) / 10

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=8)

    val_dataloader = test_dataloader = train_dataloader


class Loggers(types.ModuleType):
    """Stands in for the module that dispatches images and tables to loggers."""

    def __init__(self):
        super().__init__("attention_zoo.tasks.loggers")
        self.images, self.tables = [], []

    def log_image(self, loggers, key, image, step):
        assert image.is_file()
        self.images.append((key, step))

    def log_table(self, loggers, key, columns, rows, step):
        self.tables.append((key, columns, rows, step))


@pytest.fixture
def loggers(monkeypatch):
    module = Loggers()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def trainer(*callbacks, **options):
    defaults = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(
            isinstance(callback, (ModelCheckpoint, LastCheckpoint)) for callback in callbacks
        ),
        "log_every_n_steps": 2,
    }
    return Trainer(callbacks=list(callbacks), **{**defaults, **options})


def fit(*callbacks, task=None, data=None, ckpt_path=None, **options):
    torch.manual_seed(0)
    task = task or Task()
    run = trainer(*callbacks, **options)
    run.fit(task, data or Data(), ckpt_path=ckpt_path, weights_only=True)
    return task


def weights(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def start(optimizer=adamw):
    """A task that depends on its seed only at its start."""
    torch.manual_seed(0)
    task = Task(optimizer)
    task.model.dropout.p = 0.0
    return task


class StopAfterTwoEpochs(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == 1


class Spy(Callback):
    """Keeps what the trainer knew at the end of every training batch and validation."""

    def __init__(self):
        self.logged, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.logged.append((trainer.global_step, dict(trainer.callback_metrics)))

    def on_validation_end(self, trainer, pl_module):
        self.validated.append(weights(pl_module))


# Progress


def screen(*, terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def test_without_a_terminal_there_is_a_plain_line_every_tenth():
    console = screen(terminal=False)
    fit(Progress(console=console), data=Data(10), max_epochs=2, enable_progress_bar=True)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 10
    for number, line in enumerate(lines, start=1):
        assert line.startswith(f"step {2 * number}/20  loss ")
        assert "tokens/s" in line and line.endswith("left")
        assert line.isprintable()


def test_the_loss_shown_is_that_of_the_step():
    losses = []

    class Spied(Task):
        def training_step(self, batch, index):
            output = super().training_step(batch, index)
            losses.append(output["task_loss"].item() / output["tokens"])
            # Lightning divides it, and a loss of the attention's own may be part of it.
            return {**output, "loss": output["loss"] + 100.0}

    console = screen(terminal=False)
    fit(
        Progress(console=console),
        task=Spied(),
        max_epochs=1,
        accumulate_grad_batches=2,
        enable_progress_bar=True,
    )
    shown = [float(line.split()[3]) for line in console.file.getvalue().splitlines()]
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


# Throughput


def test_tokens_rate_and_learning_rate_are_logged_every_n_steps():
    spy = Spy()
    fit(Throughput(), spy, max_epochs=1, data=Data(8))
    logged = {step: metrics for step, metrics in spy.logged if step % 2 == 0}
    assert [logged[step]["train/tokens"].item() for step in (2, 4, 6, 8)] == [64, 128, 192, 256]
    # Warm-up of 2, then 6 steps of fall: the rates of steps 2, 4, 6 and 8.
    rates = [logged[step]["train/learning_rate"].item() for step in (2, 4, 6, 8)]
    assert rates == pytest.approx([0.1, 0.1 * 5 / 6, 0.1 * 3 / 6, 0.1 * 1 / 6])
    assert all(logged[step]["train/tokens_per_second"] > 0 for step in logged)


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
        "attention_zoo.tasks.callbacks.throughput.time",
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
        "attention_zoo.tasks.callbacks.throughput.time",
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


# History


def history(**options):
    """Of a run, whole, with the points that were logged."""
    spy, throughput = Spy(), Throughput()
    kept = History(throughput)

    class Logged(Task):
        def training_step(self, batch, index):
            output = super().training_step(batch, index)
            self.log("train/loss", output["task_loss"])
            return output

    torch.manual_seed(0)
    task = Logged()
    task.model.dropout.p = 0.0
    fit(throughput, kept, spy, *options.pop("callbacks", []), task=task, **options)
    return kept, spy


def test_the_curve_has_a_point_where_losses_are_logged():
    kept, spy = history(max_epochs=2)
    logged = {step: metrics["train/loss"].item() for step, metrics in spy.logged}
    expected = [(step, 32 * step, logged[step]) for step in (2, 4, 6, 8)]
    assert kept.points["train/loss"] == expected
    assert [point[:2] for point in kept.points["val/loss"]] == [(4, 128), (8, 256)]


def test_a_resumed_run_has_the_whole_curve(tmp_path):
    whole, _ = history(max_epochs=3)
    history(callbacks=[LastCheckpoint(dirpath=tmp_path), StopAfterTwoEpochs()])
    resumed, _ = history(max_epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert len(whole.points["train/loss"]) == 6
    assert resumed.points == whole.points


def test_a_long_curve_is_thinned_and_ends_where_the_run_ends():
    kept = History(Throughput())
    kept.points["train/loss"] = [(step, 10 * step, 1 / step) for step in range(1, 1002)]
    kept.points["val/loss"] = [(1, 10, math.nan), (2, 20, math.inf), (3, 30, 0.5)]
    curves = kept.curves(most=400)
    train = curves["train/loss"]
    assert 300 < len(train) <= 400 and train[-1] == [1001, 10010, 1 / 1001]
    assert {later[0] - sooner[0] for sooner, later in pairwise(train)} == {3}
    assert curves["val/loss"] == [[1, 10, None], [2, 20, None], [3, 30, 0.5]]
    assert History(Throughput()).curves() == {"train/loss": [], "val/loss": []}


# Checkpoints and averaging


@pytest.mark.parametrize("optimizer", [adamw, muon])
@pytest.mark.parametrize("options", [{}, {"val_check_interval": 2}])
def test_resuming_from_the_last_checkpoint_ends_at_the_same_weights(tmp_path, optimizer, options):
    whole = fit(task=start(optimizer), **options)
    part = fit(
        LastCheckpoint(dirpath=tmp_path), StopAfterTwoEpochs(), task=start(optimizer), **options
    )
    rest = fit(task=start(optimizer), ckpt_path=tmp_path / "last.ckpt", **options)
    assert whole.seen == part.seen + rest.seen
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(rest)[name])


def test_the_last_checkpoint_is_the_last_even_where_nothing_improves(tmp_path):
    best = ModelCheckpoint(tmp_path, "best", monitor="val/loss", enable_version_counter=False)

    class Worse(Task):
        def validation_step(self, batch, index):
            self.log("val/loss", float(self.trainer.global_step))

    fit(best, LastCheckpoint(dirpath=tmp_path), task=Worse(), num_sanity_val_steps=0)
    steps = {
        path.name: torch.load(path, weights_only=True)["global_step"] for path in tmp_path.iterdir()
    }
    assert steps == {"best.ckpt": 4, "last.ckpt": 12}


@pytest.mark.parametrize("last", [2, 3, 9])
def test_averaging_is_the_mean_of_the_last_validations(tmp_path, last):
    spy = Spy()
    task = fit(
        CheckpointAveraging(dirpath=tmp_path, last=last),
        spy,
        LastCheckpoint(dirpath=tmp_path),
        num_sanity_val_steps=2,
        max_epochs=5,
    )
    history = spy.validated[1:][-last:]  # the sanity check is none
    saved = torch.load(tmp_path / "averaged.ckpt", weights_only=True)["state_dict"]
    for name, value in weights(task).items():
        by_hand = sum(one[name].double() for one in history) / len(history)
        torch.testing.assert_close(value.double(), by_hand, rtol=1e-6, atol=1e-7)
        assert torch.equal(saved[name], value)
    # What was trained is what is resumed from.
    trained = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(trained[name], value) for name, value in history[-1].items())
    Task().load_state_dict(saved)


def test_a_resumed_run_averages_the_same(tmp_path):
    def averaging(name):
        return CheckpointAveraging(dirpath=tmp_path / name, last=3)

    whole = fit(averaging("whole"), task=start(), max_epochs=4)
    fit(
        averaging("part"),
        LastCheckpoint(dirpath=tmp_path),
        StopAfterTwoEpochs(),
        task=start(),
        max_epochs=4,
    )
    rest = fit(averaging("rest"), task=start(), max_epochs=4, ckpt_path=tmp_path / "last.ckpt")
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(rest)[name])


def test_averaging_nothing_changes_nothing(tmp_path):
    plain = fit(limit_val_batches=0)
    averaged = fit(CheckpointAveraging(dirpath=tmp_path), limit_val_batches=0)
    assert not list(tmp_path.iterdir())
    for name, value in weights(plain).items():
        assert torch.equal(value, weights(averaged)[name])


def test_averaging_refuses_a_window_of_nothing(tmp_path):
    with pytest.raises(UserError, match=r"at least 1.*0"):
        CheckpointAveraging(dirpath=tmp_path, last=0)


# Looking into the model


def test_maps_are_drawn_for_every_probe_and_layer(tmp_path, loggers):
    maps = AttentionMaps(folder=tmp_path / "figures", probes=2)
    fit(maps, max_epochs=1)
    names = [f"probe-{n}-cross-layer-{i}.png" for n in (1, 2) for i in (1, 2)]
    assert [path.name for path in maps.paths] == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in maps.paths)
    keys = [f"attention/probe-{n}/cross/layer-{i}" for n in (1, 2) for i in (1, 2)]
    assert loggers.images == [(key, 4) for key in keys]


def test_samples_stand_beside_their_references(loggers):
    samples = Samples(probes=2)
    fit(samples, max_epochs=1)
    rows = [["one two", "um dois", "ONE TWO"]]
    rows += [["three four five", "três quatro cinco", "THREE FOUR FIVE"]]
    columns = ["source", "reference", "translation"]
    assert loggers.tables == [("samples", columns, rows, 4)]
    assert samples.rows == rows


def test_samples_may_have_no_references(loggers):
    data = Data()
    data.probe_references = None
    samples = Samples(probes=1)
    fit(samples, data=data, max_epochs=1)
    assert samples.columns == ["source", "translation"]
    assert samples.rows == [["one two", "ONE TWO"]]


@pytest.mark.parametrize("make", [Samples, AttentionMaps])
def test_looking_happens_every_n_validations_and_once_at_the_end(tmp_path, loggers, make):
    options = {"folder": tmp_path} if make is AttentionMaps else {}
    callback = make(every_n_validations=2, probes=1, **options)
    fit(callback, max_epochs=6)
    steps = [image[-1] for image in loggers.images] or [table[-1] for table in loggers.tables]
    assert list(dict.fromkeys(steps)) == [8, 16, 24]
    assert len(steps) == (6 if make is AttentionMaps else 3)


def test_looking_does_not_disturb_training(tmp_path, loggers):
    plain = fit()
    looked = fit(AttentionMaps(folder=tmp_path), Samples())
    for name, value in weights(plain).items():
        assert torch.equal(value, weights(looked)[name])


def test_modes_are_put_back_module_by_module():
    task = Task()
    task.train()
    task.model.hidden.eval()
    with pytest.raises(RuntimeError, match="on purpose"), undisturbed(task):
        assert not any(module.training for module in task.modules())
        raise RuntimeError("on purpose")
    assert task.model.dropout.training and not task.model.hidden.training


@pytest.mark.parametrize("make", [Samples, AttentionMaps])
def test_an_interval_of_nothing_is_refused(tmp_path, make):
    options = {"folder": tmp_path} if make is AttentionMaps else {}
    with pytest.raises(UserError, match=r"at least 1.*0"):
        make(every_n_validations=0, **options)


# Configuration


def composed(choice, tmp_path):
    with initialize_config_module("attention_zoo.conf", version_base="1.3"):
        config = compose(overrides=[f"+callbacks={choice}"])
    OmegaConf.set_struct(config, False)
    config.paths = {"run": str(tmp_path)}
    return {name: instantiate(node) for name, node in config.callbacks.items()}


@pytest.mark.parametrize("choice", ["none", "minimal", "default", "averaged"])
def test_callback_configurations_run(choice, tmp_path, loggers):
    callbacks = composed(choice, tmp_path)
    run = {"enable_progress_bar": True, "enable_checkpointing": True} if callbacks else {}
    fit(*callbacks.values(), **run)
    expected = {
        "none": set(),
        "minimal": {"best.ckpt", "last.ckpt"},
        "default": {"best.ckpt", "last.ckpt"},
        "averaged": {"best.ckpt", "last.ckpt", "averaged.ckpt"},
    }
    assert {path.name for path in tmp_path.glob("checkpoints/*")} == expected[choice]
    assert (tmp_path / "figures").exists() == (choice in {"default", "averaged"})


def test_averaging_comes_before_what_looks(tmp_path):
    names = list(composed("averaged", tmp_path))
    assert names.index("averaging") < min(names.index("attention_maps"), names.index("samples"))


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize(
    "schedule", ["constant", "inverse_square_root", "linear", "cosine", "warmup_stable_decay"]
)
def test_optimizer_and_schedule_configurations_build(name, schedule):
    with initialize_config_module("attention_zoo.conf", version_base="1.3"):
        config = compose(overrides=[f"+optimizer={name}", f"+schedule={schedule}"])
    optimizer = instantiate(config.optimizer)(Task().model)
    scheduler = instantiate(config.schedule)(optimizer, total_steps=1000)
    assert 0 < scheduler.get_last_lr()[0] <= config.optimizer.lr


# Several processes

DDP = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from tests.tasks import test_callbacks as t
folder = Path(sys.argv[2])

class Uneven(t.Task):
    def training_step(self, batch, index):
        output = super().training_step(batch, index)
        return {**output, "tokens": 10 + self.global_rank}

throughput, spy = t.Throughput(), t.Spy()
averaging = t.CheckpointAveraging(dirpath=folder, last=2)
last = t.LastCheckpoint(dirpath=folder)
loggers = t.Loggers()
sys.modules[loggers.__name__] = loggers
samples, maps = t.Samples(), t.AttentionMaps(folder=folder, roles=["cross"], steps=[1])
task = t.fit(throughput, averaging, samples, maps, last, spy, task=Uneven(), devices=2,
             strategy="ddp", num_sanity_val_steps=0)
by_hand = {name: (spy.validated[-1][name] + spy.validated[-2][name]) / 2
           for name in spy.validated[-1]}
error = max((t.weights(task)[name] - value).abs().max().item() for name, value in by_hand.items())
result = {"tokens": throughput.tokens, "error": error, "tables": len(loggers.tables),
          "images": len(loggers.images),
          "saved": sorted(path.name for path in folder.glob("*.ckpt"))}
(folder / f"rank-{task.global_rank}.json").write_text(json.dumps(result))
"""


@pytest.mark.slow
def test_two_processes_count_together_and_average_alike(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(DDP)
    repository = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, repository, tmp_path],
        check=True,
        timeout=200,
        env=environment,
        capture_output=True,
        text=True,
    )
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    steps = 3 * 2  # epochs, and batches a rank
    assert [rank["tokens"] for rank in ranks] == [steps * 21] * 2
    assert all(rank["error"] < 1e-6 for rank in ranks)
    assert [rank["tables"] for rank in ranks] == [3, 0]
    # Two probes with two layers each: at a step, at two validations and at the end.
    assert [rank["images"] for rank in ranks] == [16, 0]
    assert done.stdout.count("of the training's time") == 2, "samples and maps, once each"
    assert {"averaged.ckpt", "last.ckpt"} == set(ranks[0]["saved"])
