"""The last checkpoint, and the mean of the last validations."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from attention_zoo.errors import UserError
from attention_zoo.tasks.training.callbacks.averaging import CheckpointAveraging
from attention_zoo.tasks.training.callbacks.last_checkpoint import LastCheckpoint
from attention_zoo.tasks.training.optimizers import adamw, muon
from tests.tasks.training import QUIET, Spy, StopAfterTwoEpochs, Task, fit, start, weights

pytestmark = QUIET


@pytest.mark.parametrize("optimizer", [adamw, muon])
@pytest.mark.parametrize("options", [{}, {"val_check_interval": 2}])
def test_resuming_from_the_last_checkpoint_ends_at_the_same_weights(tmp_path, optimizer, options):
    whole = fit(task=start(optimizer), **options)
    part = fit(
        LastCheckpoint(dirpath=tmp_path), StopAfterTwoEpochs(), task=start(optimizer), **options
    )
    resumed = fit(task=start(optimizer), ckpt_path=tmp_path / "last.ckpt", **options)
    assert whole.seen == part.seen + resumed.seen
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name])


def test_the_last_checkpoint_is_the_last_even_where_nothing_improves(tmp_path):
    best = ModelCheckpoint(tmp_path, "best", monitor="val/loss", enable_version_counter=False)

    class Worse(Task):
        def validation_step(self, batch, index):
            self.log("val/loss", float(self.trainer.global_step))

    fit(best, LastCheckpoint(dirpath=tmp_path), task=Worse(), num_sanity_val_steps=0)
    steps = {
        path.name: torch.load(path, weights_only=True)["global_step"] for path in tmp_path.iterdir()
    }
    assert steps == {"best.ckpt": 4, "previous.ckpt": 8, "last.ckpt": 12}


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
    resumed = fit(
        averaging("resumed"), task=start(), max_epochs=4, ckpt_path=tmp_path / "last.ckpt"
    )
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name])


def test_averaging_nothing_changes_nothing(tmp_path):
    plain = fit(limit_val_batches=0)
    averaged = fit(CheckpointAveraging(dirpath=tmp_path), limit_val_batches=0)
    assert not list(tmp_path.iterdir())
    for name, value in weights(plain).items():
        assert torch.equal(value, weights(averaged)[name])


def test_averaging_refuses_a_window_of_nothing(tmp_path):
    with pytest.raises(UserError, match=r"at least 1.*0"):
        CheckpointAveraging(dirpath=tmp_path, last=0)
