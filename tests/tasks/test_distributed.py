"""Two processes are one: the same batches give the same losses, weights and scores."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.devices import TASKS, TRAINERS, compare

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
OPTIONS = [
    "model=tiny",
    "model.dim=16",
    "model.heads=2",
    "model.layers=1",
    "model.ffn_dim=32",
    "model.dropout=0",
    "tokenizer=characters",
    "data.source.size=61",
    "data.source.valid=7",
    "data.source.test=7",
    "data.tokens_per_batch=512",
    "decoding.max_extra=5",
    "decoding.max_ratio=0.5",
    "trainer.accelerator=cpu",
    "trainer.max_steps=3",
    "trainer.log_every_n_steps=1",
]


def train(folder, *arguments):
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "HYDRA", "MASTER"))
    }
    options = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-m", "attention_zoo", "train", *OPTIONS, *arguments],
        cwd=folder,
        env=environment | options | {"ATTENTION_ZOO_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done


def results(run):
    return json.loads((run / "results.json").read_text())


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    loggers = "logger=[csv,wandb]"
    # Batches 0 and 1 are the two ranks' first ones, and the first two of one process.
    train(folder, loggers, "trainer.accumulate_grad_batches=2")
    done = train(folder, loggers, "trainer=ddp")
    runs = sorted((folder / "logs" / "translation" / "runs").iterdir())
    return runs, done


def test_there_is_one_run(pair):
    runs, done = pair
    assert len(runs) == 2
    assert len(list((runs[1] / "wandb").glob("offline-run-*"))) == 1
    for once in ("config\n", "W&B:", "step 3/3", "Results"):
        assert done.stdout.count(once) == 1, once
    assert done.stderr == ""


def test_losses_and_weights_are_those_of_one_process(pair):
    (one, two), _ = pair
    ours, theirs = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, two)
    )
    assert ours["global_step"] == theirs["global_step"] == 3
    for name, weight in ours["state_dict"].items():
        torch.testing.assert_close(theirs["state_dict"][name], weight, rtol=1e-3, atol=1e-5)
    ours, theirs = (losses(run) for run in (one, two))
    assert len(ours) == 3
    assert theirs == pytest.approx(ours, rel=1e-5)
    assert results(one)["tokens_seen"] == results(two)["tokens_seen"]


def test_the_manifest_is_that_of_one_process(pair):
    (one, two), _ = pair
    ours, theirs = results(one), results(two)
    for same in ("training_flops_per_token", "decode_state_bytes", "parameters"):
        assert theirs[same] == ours[same]
    # Their batches are odd in number: two processes divide one of them.
    assert theirs["data_order"] != ours["data_order"]
    for loss, curve in ours["history"].items():
        points = [point[:2] for point in theirs["history"][loss]]
        assert points == [point[:2] for point in curve] != []
    assert theirs["peak_memory_bytes"] > 10**7


def test_outputs_are_in_the_order_of_the_split(pair):
    ours, theirs = ((run / "test_outputs.jsonl").read_text() for run in pair[0])
    assert ours.count("\n") == 7
    assert theirs == ours


def losses(run):
    lines = (run / "csv" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("train/loss")
    return [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]


def test_evaluation_counts_every_sample_once(pair):
    (one, two), _ = pair
    ours, theirs = results(one), results(two)
    scores = [name for name in ours if name.startswith(("val/", "test/"))]
    assert len(scores) == 9
    for name in scores:
        assert theirs[name] == pytest.approx(ours[name], rel=1e-4), name


def test_every_job_of_a_sweep_has_both_processes_and_a_rate_of_its_own(tmp_path):
    rates = [0.001, 0.003, 0.01]
    swept = f"optimizer.lr={','.join(map(str, rates))}"
    devices = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    train(tmp_path, "-m", *devices, swept, "logger=[csv,wandb]", "callbacks=minimal", "test=false")
    (sweep,) = (tmp_path / "logs" / "translation" / "multiruns").iterdir()
    jobs = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert [path.name for path in jobs] == ["0", "1", "2"]
    for job, rate in zip(jobs, rates, strict=True):
        checkpoint = torch.load(job / "checkpoints" / "last.ckpt", weights_only=True)
        state = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
        assert state["world_size"] == 2
        assert checkpoint["global_step"] == 3
        # Ranks of another rate would have been refused (see below).
        assert checkpoint["attention_zoo"]["config"]["optimizer"]["lr"] == rate
        assert len(list((job / "wandb").glob("offline-run-*"))) == 1
    assert len({losses(job)[-1] for job in jobs}) == 3


def test_ranks_with_different_configs_are_refused(tmp_path):
    """Each rank draws its own learning rate."""
    drawn = "optimizer.lr=${zoo_draw:}"
    starter = tmp_path / "starter.py"
    starter.write_text(
        "import os\n"
        "from omegaconf import OmegaConf\n"
        "OmegaConf.register_new_resolver("
        "'zoo_draw', lambda: 0.01 * (1 + int(os.environ.get('LOCAL_RANK', 0))))\n"
        "from attention_zoo.tasks.commands.cli import main\n"
        "main()\n"
    )
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "HYDRA", "MASTER"))
    }
    options = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    cache = {"ATTENTION_ZOO_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, str(starter), "train", *OPTIONS, "trainer=ddp", "logger=none", drawn],
        cwd=tmp_path,
        env=environment | options | cache,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "1 of 2 processes composed another config than the first" in done.stderr
    assert not list(tmp_path.glob("logs/**/results.json"))


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("task", TASKS)
def test_the_same_batches_give_the_same_losses_and_scores(tmp_path, monkeypatch, task, trainer):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    differences = compare(tmp_path, task, trainer, processes=2)
    assert max(differences.values()) < 1e-9, differences
