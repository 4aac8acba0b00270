"""What a run goes on from: what may differ, what is damaged, and what no kill or signal loses."""

import errno
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.data.loader import ResumableLoader
from attention_zoo.tasks.data.samplers import ShuffledRowSampler
from attention_zoo.tasks.exit_codes import exit_code
from attention_zoo.tasks.interruption import INTERRUPTION, Interrupted, interruptible
from attention_zoo.tasks.run_folder import RunFolder
from attention_zoo.tasks.training import checkpoint_files
from attention_zoo.tasks.training.checkpoint_files import WholeCheckpointIO
from attention_zoo.tasks.training.checkpoints import (
    check_resumable,
    last_checkpoint,
    read_checkpoint,
)
from attention_zoo.tasks.training.resuming import check_same_training
from tests.cli.conftest import QUICK, TEXT
from tests.cli.kills import same
from tests.tasks.training import QUIET

pytestmark = QUIET

# What may differ

CONFIG = {
    "seed": 1,
    "ckpt_override": [],
    "paths": {"run": "a"},
    "data": {"num_workers": 0, "source": {"target": "pt_BR"}},
    "optimizer": {"_target_": "adamw", "lr": 0.01, "betas": [0.9, 0.98]},
    "schedule": {"warmup_steps": 2},
    "trainer": {"max_steps": 10, "precision": "32-true", "log_every_n_steps": 5},
    "callbacks": {"progress": {"_target_": "Progress"}},
}


def with_option(name, value):
    """CONFIG with another value, or without it where that is None."""
    node, *rest = name.split(".")
    changed = {**CONFIG, "ckpt_override": list(CONFIG["ckpt_override"])}
    inner = changed
    while rest:
        inner[node] = dict(inner.get(node) or {})
        inner, node, *rest = inner[node], *rest
    inner[node] = value
    return changed


@pytest.mark.parametrize(
    "name, value",
    [
        ("seed", 7),
        ("data.source.target", "de"),
        ("data.source.size", 300),
        ("optimizer.lr", 1e-5),
        ("optimizer.betas", [0.9]),
        ("optimizer._target_", "muon"),
        ("schedule.warmup_steps", 0),
        ("trainer.precision", "bf16-mixed"),
        ("trainer.gradient_clip_val", 1.0),
        ("callbacks.averaging._target_", "CheckpointAveraging"),
        ("model.dim", 32),
    ],
)
def test_what_changes_the_training_is_refused_by_its_name_and_both_values(tmp_path, name, value):
    with pytest.raises(UserError) as refusal:
        check_same_training(tmp_path, CONFIG, with_option(name, value))
    message = str(refusal.value)
    assert f"{name}={value}." in message and message.count(f"with {name}=") == 2
    assert len(message) < 400 and "\n" not in message


@pytest.mark.parametrize(
    "name, value",
    [
        ("paths.run", "b"),
        ("data.num_workers", 2),
        ("trainer.log_every_n_steps", 1),
        ("callbacks.progress._target_", "Other"),
        ("logger.csv.save_dir", "a"),
        ("test", False),
    ],
)
def test_what_does_not_change_the_training_may_differ(tmp_path, name, value):
    assert check_same_training(tmp_path, CONFIG, with_option(name, value)) == []


def test_length_and_devices_are_obeyed_and_said(tmp_path):
    longer = with_option("trainer.max_steps", 20)
    assert check_same_training(tmp_path, CONFIG, longer) == [
        "trainer.max_steps=20 (the checkpoint has 10)"
    ]


@pytest.mark.parametrize("override", ["optimizer", "optimizer.lr"])
def test_an_explicit_word_obeys_other_options(tmp_path, override):
    other = {**with_option("optimizer.lr", 1e-5), "ckpt_override": [override]}
    assert check_same_training(tmp_path, CONFIG, other) == [
        "optimizer.lr=1e-05 (the checkpoint has 0.01)"
    ]
    other_kind = {**with_option("optimizer._target_", "muon"), "ckpt_override": ["optimizer"]}
    with pytest.raises(UserError, match="_target_=muon"):
        check_same_training(tmp_path, CONFIG, other_kind)


@pytest.mark.parametrize("word", ["model", "seed", "data", "optimiser", "lr"])
def test_only_some_groups_can_be_overridden(tmp_path, word):
    with pytest.raises(UserError, match=f"list of optimizer, schedule, trainer .* got '{word}'"):
        check_same_training(tmp_path, CONFIG, {**CONFIG, "ckpt_override": [word]})


# Files


def damage(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "empty":
        content = b""
    elif kind == "garbage":
        content = b"no checkpoint at all" * 50
    elif kind == "cut":
        content = content[: len(content) // 2]
    else:  # A bit of a weight
        content[content.index(b"\x00\x00\x80?" * 8)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["empty", "garbage", "cut", "bit"])
@pytest.mark.parametrize("has_previous", [False, True])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it(tmp_path, kind, has_previous):
    path, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    torch.save({"attention_zoo": {"config": {}}, "state_dict": {"w": torch.ones(100)}}, path)
    if has_previous:
        shutil.copy(path, previous)
    damage(path, kind)
    with pytest.raises(BadInput) as refusal:
        read_checkpoint(path)
    message = str(refusal.value)
    assert message.startswith(f"{path} cannot be read") and "\n" not in message
    assert (f"ckpt_path={previous}" in message) == has_previous


def test_weights_alone_are_nothing_to_go_on_from(tmp_path):
    with pytest.raises(UserError, match="weights only"):
        check_resumable(tmp_path, {"attention_zoo": {}})
    with pytest.raises(UserError, match="between the batches of one step"):
        check_resumable(tmp_path, {"optimizer_states": [], "attention_zoo": {"within_step": True}})


def test_the_run_of_the_folder_comes_before_newer_ones(tmp_path):
    own = RunFolder(tmp_path / "b")
    other = RunFolder(tmp_path / "logs" / "translation" / "runs" / "1")
    for age, run in enumerate((own, other)):
        run.checkpoints.mkdir(parents=True)
        run.last_checkpoint.touch()
        os.utime(run.last_checkpoint, (age, age))
    assert last_checkpoint(own, tmp_path / "logs", "translation") == own.last_checkpoint
    own.last_checkpoint.unlink()
    assert last_checkpoint(own, tmp_path / "logs", "translation") == other.last_checkpoint


@pytest.mark.parametrize("stage", ["save", "fsync", "replace"])
def test_a_kill_while_a_checkpoint_is_written_leaves_the_old_one(tmp_path, monkeypatch, stage):
    path = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"attention_zoo": 1}, path)

    class Killed(BaseException):
        pass

    def kill(*args):
        raise Killed

    module = torch if stage == "save" else checkpoint_files.os
    monkeypatch.setattr(module, stage, kill)
    with pytest.raises(Killed):
        WholeCheckpointIO().save_checkpoint({"attention_zoo": 2}, path)
    assert torch.load(path, weights_only=True) == {"attention_zoo": 1}


def test_a_full_disk_costs_the_checkpoint_and_is_said(tmp_path, caplog):
    resource = pytest.importorskip("resource")
    path, (soft, hard) = tmp_path / "last.ckpt", resource.getrlimit(resource.RLIMIT_FSIZE)
    WholeCheckpointIO().save_checkpoint({"global_step": 1}, path)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        big = {"global_step": 2, "weights": torch.zeros(100_000)}
        WholeCheckpointIO().save_checkpoint(big, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.load(path, weights_only=True) == {"global_step": 1}
    assert [x.name for x in tmp_path.iterdir()] == ["last.ckpt"]
    (line,) = caplog.messages
    assert str(path) in line and "step 2" in line and os.strerror(errno.EFBIG) in line


# Random states


class Rows(torch.utils.data.Dataset):
    def __getitem__(self, rows):
        return torch.tensor(rows)


def states_over_epochs(num_workers, skipped=0):
    torch.manual_seed(0)
    loader = ResumableLoader(Rows(), ShuffledRowSampler(6, batch_size=2), num_workers=num_workers)
    loader.sampler.skip_batches = skipped
    states = []
    for _ in range(2):
        states += [torch.get_rng_state() for _ in loader]
    return states


def test_a_pass_moves_the_random_state_once_and_a_resumed_pass_does_not():
    start = torch.manual_seed(0).get_state()
    torch.empty((), dtype=torch.int64).random_()
    once = torch.get_rng_state()
    states = states_over_epochs(0)
    assert all(torch.equal(x, once) for x in states[:3])
    assert not torch.equal(states[3], once)
    resumed = states_over_epochs(0, skipped=2)
    assert torch.equal(resumed[0], start) and torch.equal(resumed[1], once)


@pytest.mark.slow
def test_workers_move_the_random_state_as_none_do():
    assert same(states_over_epochs(1), states_over_epochs(0))


# Signals


def test_a_signal_ends_a_command_with_128_and_its_number():
    for number in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(Interrupted) as end, interruptible():
            os.kill(os.getpid(), number)
        assert exit_code(end.value) == 128 + number
        assert signal.getsignal(number) != INTERRUPTION.handle


def test_a_training_defers_the_first_signal_and_obeys_the_second(capfd):
    with interruptible():
        INTERRUPTION.defer(True)
        os.kill(os.getpid(), signal.SIGTERM)
        assert INTERRUPTION.received == signal.SIGTERM
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err.startswith("SIGTERM: stopping after this step")


# Trainings

FIVE = ["trainer.max_steps=5", "trainer.val_check_interval=4", "trainer.log_every_n_steps=2"]
FIVE += ["logger=none", "test=false", "model.dropout=0.2", "+trainer.limit_val_batches=2"]
EPOCHS = ["trainer.max_steps=-1", "trainer.max_epochs=2", "trainer.val_check_interval=1.0"]
TRAININGS = {
    "translation": [*QUICK, *FIVE, "optimizer=adamw", "trainer.accumulate_grad_batches=2"],
    "epochs": [*QUICK, *FIVE, *EPOCHS, "trainer.check_val_every_n_epoch=1"],
    "cut": [
        *TEXT,
        *FIVE,
        "data=python_docs",
        "callbacks=minimal",
        "+trainer.limit_train_batches=3",
    ],
}


def ends(run):
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    parts = [checkpoint[x] for x in ("global_step", "state_dict", "optimizer_states")]
    results = RunFolder(run).read_results()
    return [*parts, checkpoint["attention_zoo"]["rank_states"], results["history"]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRAININGS)
def test_every_state_that_is_written_leads_to_the_same_end(train, tmp_path, monkeypatch, kind):
    save, states = WholeCheckpointIO.save_checkpoint, tmp_path / "states"

    def save_and_keep(self, checkpoint, path, storage_options=None):
        save(self, checkpoint, path)
        if Path(path).name == "last.ckpt":
            states.mkdir(exist_ok=True)
            shutil.copy(path, states / f"{checkpoint['global_step']}.ckpt")

    every = [*TRAININGS[kind], "callbacks.last_checkpoint.every_n_steps=1"]
    with monkeypatch.context() as patched:
        patched.setattr(WholeCheckpointIO, "save_checkpoint", save_and_keep)
        whole = ends(train(*every))
    assert len(list(states.iterdir())) == whole[0] >= 5
    for step in range(1, whole[0]):
        resumed = ends(train(*every, f"ckpt_path={states / f'{step}.ckpt'}"))
        assert same(resumed, whole), step


@pytest.fixture
def stop_at(monkeypatch):
    """Send a signal to this process when a training has made some steps."""
    from attention_zoo.tasks.training.task import Task

    def plan(step, number):
        ended = Task.on_before_optimizer_step

        def send(task, optimizer):
            if task.trainer.global_step + 1 == step:
                os.kill(os.getpid(), number)
            ended(task, optimizer)

        monkeypatch.setattr(Task, "on_before_optimizer_step", send)

    return plan


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_validation_saves(train, tmp_path, stop_at, capfd, number):
    stop_at(2, number)
    run = tmp_path / "run"
    options = [*TRAININGS["translation"], f"hydra.run.dir={run}"]
    with pytest.raises(SystemExit) as end:
        train(*options)
    assert end.value.code == 128 + number
    out, err = capfd.readouterr()
    assert len(err.splitlines()) == 1 and "stopping after this step" in err
    assert (
        "Go on with: attention-zoo train " in out and "ckpt_path=run/checkpoints/last.ckpt" in out
    )
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 2
    results = RunFolder(run).read_results()
    assert (results["ended"], results["steps"]) == (number.name, 2)


def refusal(train, capsys, *options, code=2):
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        train(*options)
    assert end.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.slow
def test_going_on(train, tmp_path, capsys):
    """One training, and what its command answers when it is given again with other options."""
    run, quick = tmp_path / "b", [*QUICK, "logger=csv", "test=false"]
    quick += [f"hydra.run.dir={run}", "trainer.log_every_n_steps=1"]
    with pytest.raises(ValueError):  # The fixture finds no run in logs/.
        train(*quick, "trainer.max_steps=2")
    results = RunFolder(run).read_results()
    assert (results["ended"], results["steps"]) == ("max_steps", 2) and "resumed" not in results
    longer = [*quick, "trainer.max_steps=4"]
    assert "holds a run already" in refusal(train, capsys, *longer)
    (other := tmp_path / "other").mkdir()
    shutil.copy(run / "checkpoints" / "last.ckpt", other)
    elsewhere = f"ckpt_path={other / 'last.ckpt'}"
    assert "b holds a run already" in refusal(train, capsys, *longer, elsewhere)
    last = [*longer, "ckpt_path=last"]
    assert "seed=1, got seed=7" in refusal(train, capsys, *last, "seed=7")
    line = refusal(train, capsys, *last, "optimizer.lr=1e-5")
    assert "optimizer.lr=1e-05" in line and "ckpt_override=[optimizer]" in line
    assert "target=de" in refusal(train, capsys, *last, "data.source.target=de")
    with pytest.raises(ValueError):
        train(*last, "optimizer.lr=1e-5", "ckpt_override=[optimizer]")
    out = capsys.readouterr().out
    assert "Going on from b/checkpoints/last.ckpt, after step 2" in out
    assert "optimizer.lr=1e-05 (the checkpoint has" in out
    results = RunFolder(run).read_results()
    assert results["resumed"]["step"] == 2 and len(results["resumed"]["obeyed"]) == 2
    # The rate is that of the schedule composed now, from its first step.
    table = (run / "csv" / "metrics.csv").read_text().splitlines()
    column, step = (table[0].split(",").index(x) for x in ("train/learning_rate", "step"))
    cells = [row.split(",") for row in table[1:]]
    rates = {row[step]: row[column] for row in cells if row[column]}
    assert {*rates} == {"0", "1", "2", "3"}
    assert 0 < float(rates["2"]) <= 1e-5 and 0 < float(rates["3"]) <= 1e-5
    with pytest.raises(ValueError):
        train(*last, "optimizer.lr=1e-5")
    assert "No step is left" in capsys.readouterr().out
