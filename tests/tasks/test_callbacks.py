"""Callbacks together: as they are configured, and over several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf

from attention_zoo.errors import UserError
from attention_zoo.tasks.training.callbacks import attention_maps, samples
from attention_zoo.tasks.training.callbacks.attention_maps import AttentionMaps
from attention_zoo.tasks.training.callbacks.periodic_inspection import evaluation_mode
from attention_zoo.tasks.training.callbacks.samples import Samples
from tests.tasks.training import QUIET, Data, Task, fit, weights

pytestmark = QUIET


class Loggers:
    """Stands in for the functions that dispatch images and tables to loggers."""

    def __init__(self):
        self.images, self.tables = [], []

    def log_image(self, loggers, key, image, step):
        assert image.is_file()
        self.images.append((key, step))

    def log_table(self, loggers, key, columns, rows, step):
        self.tables.append((key, columns, rows, step))


@pytest.fixture
def loggers(monkeypatch):
    loggers = Loggers()
    monkeypatch.setattr(attention_maps, "log_image", loggers.log_image)
    monkeypatch.setattr(samples, "log_table", loggers.log_table)
    return loggers


# Inspection of the model


def test_maps_are_drawn_for_every_probe_and_layer(tmp_path, loggers):
    maps = AttentionMaps(folder=tmp_path / "figures", probes=2)
    fit(maps, max_epochs=1)
    names = [f"probe-{n}-cross-layer-{i}.png" for n in (1, 2) for i in (0, 1)]
    assert [path.name for path in maps.paths] == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in maps.paths)
    keys = [f"attention/probe-{n}/cross/layer-{i}" for n in (1, 2) for i in (0, 1)]
    assert loggers.images == [(key, 4) for key in keys]


def test_samples_stand_beside_their_references(loggers):
    callback = Samples(probes=2)
    fit(callback, max_epochs=1)
    rows = [["one two", "um dois", "ONE TWO"]]
    rows += [["three four five", "três quatro cinco", "THREE FOUR FIVE"]]
    columns = ["source", "reference", "translation"]
    assert loggers.tables == [("samples", columns, rows, 4)]
    assert callback.rows == rows


def test_samples_may_have_no_references(loggers):
    data = Data()
    data.probe_references = None
    callback = Samples(probes=1)
    fit(callback, data=data, max_epochs=1)
    assert callback.columns == ["source", "translation"]
    assert callback.rows == [["one two", "ONE TWO"]]


@pytest.mark.parametrize("make", [Samples, AttentionMaps])
def test_inspections_happen_every_n_validations_and_once_at_the_end(tmp_path, loggers, make):
    options = {"folder": tmp_path} if make is AttentionMaps else {}
    callback = make(every_n_validations=2, probes=1, **options)
    fit(callback, max_epochs=6)
    steps = [image[-1] for image in loggers.images] or [table[-1] for table in loggers.tables]
    assert list(dict.fromkeys(steps)) == [8, 16, 24]
    assert len(steps) == (6 if make is AttentionMaps else 3)


@pytest.mark.slow
def test_inspections_do_not_disturb_training(tmp_path, loggers):
    plain = fit()
    inspected = fit(AttentionMaps(folder=tmp_path), Samples())
    for name, value in weights(plain).items():
        assert torch.equal(value, weights(inspected)[name])


def test_modes_are_put_back_module_by_module():
    task = Task()
    task.train()
    task.model.hidden.eval()
    with pytest.raises(RuntimeError, match="on purpose"), evaluation_mode(task):
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
        "minimal": {"best.ckpt", "last.ckpt", "previous.ckpt"},
        "default": {"best.ckpt", "last.ckpt", "previous.ckpt"},
        "averaged": {"best.ckpt", "last.ckpt", "previous.ckpt", "averaged.ckpt"},
    }
    assert {path.name for path in tmp_path.glob("checkpoints/*")} == expected[choice]
    assert (tmp_path / "figures").exists() == (choice in {"default", "averaged"})


def test_averaging_comes_before_inspections(tmp_path):
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
from attention_zoo.tasks.training.callbacks import attention_maps, samples
from attention_zoo.tasks.training.callbacks.attention_maps import AttentionMaps
from attention_zoo.tasks.training.callbacks.averaging import CheckpointAveraging
from attention_zoo.tasks.training.callbacks.last_checkpoint import LastCheckpoint
from attention_zoo.tasks.training.callbacks.samples import Samples
from attention_zoo.tasks.training.callbacks.throughput import Throughput
from tests.tasks.test_callbacks import Loggers
from tests.tasks.training import Spy, Task, fit, weights
folder = Path(sys.argv[2])

class Uneven(Task):
    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        self.last_step = self.last_step._replace(tokens=torch.tensor(10 + self.global_rank))
        return loss

throughput, spy = Throughput(), Spy()
averaging = CheckpointAveraging(dirpath=folder, last=2)
last = LastCheckpoint(dirpath=folder)
loggers = Loggers()
attention_maps.log_image, samples.log_table = loggers.log_image, loggers.log_table
table, maps = Samples(), AttentionMaps(folder=folder, roles=["cross"], steps=[1])
task = fit(throughput, averaging, table, maps, last, spy, task=Uneven(), devices=2,
             strategy="ddp", num_sanity_val_steps=0)
by_hand = {name: (spy.validated[-1][name] + spy.validated[-2][name]) / 2
           for name in spy.validated[-1]}
error = max((weights(task)[name] - value).abs().max().item() for name, value in by_hand.items())
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
    assert {"averaged.ckpt", "last.ckpt", "previous.ckpt"} == set(ranks[0]["saved"])
