"""Options that no file lists, and those that once had no effect, do what they say."""

import json

import pytest
import torch

from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.option_checks import check_options, unknown_option
from attention_zoo.tasks.configuration.signatures import matches
from tests.cli.conftest import QUICK
from tests.conf.test_conf import composed
from tests.conformance.cases import mark_exhaustive

STEPS = ["trainer.max_steps=6", "trainer.val_check_interval=2", "test=false"]


@pytest.mark.parametrize(
    "overrides",
    mark_exhaustive(
        (overrides, "a training")
        for overrides in (
            ["trainer.limit_train_batches=1", "trainer.limit_val_batches=1", "logger=null"],
            ["optimizer=adamw", "optimizer._target_=torch.optim.AdamW", "optimizer.amsgrad=true"],
            ["schedule._target_=torch.optim.lr_scheduler.ConstantLR", "schedule.factor=0.5"],
            ["callbacks=null", "logger=none"],
        )
    ),
)
def test_options_that_no_file_lists_are_obeyed(train, overrides):
    others = [x for x in QUICK if not x.startswith("callbacks")] + ["callbacks=minimal"]
    if "callbacks=null" in overrides:
        others.remove("callbacks=minimal")
    if overrides[0].startswith("schedule"):
        others += [f"~schedule.{x}" for x in ("warmup_steps", "decay_fraction", "decay")]
        others.append("~schedule.min_lr_ratio")
    if not any(x.startswith("logger") for x in overrides):
        others.append("logger=none")
    run = train(*others, "trainer.max_steps=1", "test=false", *overrides)
    assert json.loads((run / "results.json").read_text())["val/loss"] > 0


@pytest.mark.slow
def test_several_best_checkpoints_are_files_of_their_own_and_the_best_is_scored(train):
    run = train(*QUICK, *STEPS, "logger=none", "callbacks.best_checkpoint.save_top_k=2")
    results = json.loads((run / "results.json").read_text())
    curve = {step: loss for step, _, loss in results["history"]["val/loss"]}
    best_two = sorted(curve, key=curve.get)[:2]
    names = {path.name for path in (run / "checkpoints").glob("best*")}
    assert names == {f"best-{step}.ckpt" for step in best_two}
    assert results["val/loss"] == pytest.approx(min(curve.values()), rel=1e-5)


@pytest.mark.slow
def test_a_monitored_metric_of_text_is_computed_in_validation(train):
    options = ["callbacks.best_checkpoint.monitor=val/bleu", "callbacks.best_checkpoint.mode=max"]
    run = train(*QUICK, *STEPS, "logger=none", *options)
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    (state,) = [x for name, x in checkpoint["callbacks"].items() if "ModelCheckpoint" in name]
    assert state["monitor"] == "val/bleu" and state["best_model_score"] is not None


def test_the_loss_of_training_is_monitored_where_it_is_logged_by_then(train, capsys):
    monitor = "callbacks.best_checkpoint.monitor=train/loss"
    with pytest.raises(SystemExit):
        train(*QUICK, *STEPS, "logger=none", monitor, "trainer.log_every_n_steps=3")
    assert "give trainer.log_every_n_steps=2" in capsys.readouterr().err
    run = train(*QUICK, *STEPS, "logger=none", monitor, "trainer.log_every_n_steps=2")
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    (state,) = [x for name, x in checkpoint["callbacks"].items() if "ModelCheckpoint" in name]
    assert state["monitor"] == "train/loss" and state["best_model_score"] is not None


@pytest.mark.parametrize(
    ("option", "end"),
    [
        ("trainer.max_steps=2", "max_steps"),
        ("trainer.max_epochs=1", "max_epochs"),
        ("trainer.max_time=00:00:00:01", "max_time"),
    ],
)
def test_why_a_training_ended_is_recorded(train, option, end):
    options = [*QUICK, "logger=none", "test=false", option]
    if not option.startswith("trainer.max_steps"):
        options.append(f"trainer.max_steps={-1 if end == 'max_epochs' else 100000}")
    run = train(*options)
    assert json.loads((run / "results.json").read_text())["ended"] == end


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("lr", "optimizer.lr"), ("max_steps", "trainer.max_steps"), ("tags", "logger.wandb.tags")],
)
def test_the_nearest_option_of_the_whole_tree_is_named(name, nearest):
    assert f"Did you mean {nearest}" in unknown_option(name, composed())


def test_an_option_that_a_file_adds_is_refused():
    config = composed()
    with pytest.raises(UserError, match="no option 'foo'"):
        check_options({**config, "foo": 1}, config)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (True, int, False),
        (1, float, True),
        (1, int | None, True),
        ("1", int | None, False),
        ([1, 2], tuple[float, float], True),
        ([1], tuple[float, float], False),
        ("ab", list[str], False),
        ({"_target_": "torch.nn.Identity"}, torch.nn.Module, True),
        ("x", torch.nn.Module, False),
    ],
)
def test_values_of_a_config_have_types(value, annotation, expected):
    assert matches(value, annotation) is expected
