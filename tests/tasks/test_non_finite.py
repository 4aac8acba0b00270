"""A step whose loss or gradients are not finite names its place, and is dealt with as asked."""

import json

import pytest
import torch

from attention_zoo.tasks.training.translation import TranslationTask

OPTIONS = (
    *("model=tiny", "model.dim=16", "model.heads=2", "model.ffn_dim=32", "model.dropout=0"),
    *("data.source.size=40", "data.source.valid=5", "data.source.test=5", "test=false"),
    *("tokenizer=bytes", "data.tokens_per_batch=256", "callbacks=minimal", "logger=csv"),
    *("trainer.max_steps=12", "trainer.log_every_n_steps=1"),
)
LAYER = "encoder.layers.1.feed_forward.expand"


@pytest.fixture
def damage(monkeypatch):
    """Makes an output or a gradient of a layer infinite, at some steps."""
    predict_batch = TranslationTask.predict_batch

    def install(place, steps):
        def damaged(task, batch):
            trainer = task._trainer  # None while costs are counted
            if trainer is None or not task.training or trainer.global_step + 1 not in steps:
                return predict_batch(task, batch)
            layer = task.model.get_submodule(LAYER)
            if place == "output":
                hook = layer.register_forward_hook(lambda *x: x[-1] * torch.inf, prepend=True)
            elif torch.is_grad_enabled():
                once = layer.weight.register_hook(lambda x: once.remove() or x * torch.inf)
            try:
                return predict_batch(task, batch)
            finally:
                if place == "output":
                    hook.remove()

        monkeypatch.setattr(TranslationTask, "predict_batch", damaged)

    return install


def losses(run):
    header, *lines = (run / "csv" / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    return {int(row["step"]) + 1: row["train/loss"] for row in rows if row["train/loss"]}


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("output", f"the output of {LAYER} is not finite"),
        ("gradient", f"the gradient of {LAYER}.weight is not finite"),
    ],
)
def test_the_training_stops_and_names_step_and_layer(
    damage, train, tmp_path, capsys, place, reason
):
    damage(place, {3})
    with pytest.raises(SystemExit) as stopped:
        train(*OPTIONS)
    assert stopped.value.code == 2
    assert f"training diverged: step 3: {reason}" in capsys.readouterr().err
    [results] = tmp_path.glob("logs/*/runs/*/results.json")
    assert json.loads(results.read_text())["diverged"].startswith(f"step 3: {reason}")


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_skipped_step_leaves_the_weights_as_they_are(damage, train, capsys, optimizer):
    damage("output", {3, 4})
    run = train(*OPTIONS, f"optimizer={optimizer}", "task.non_finite=skip")
    assert f"step 3: the output of {LAYER} is not finite: skipped" in capsys.readouterr().out
    assert json.loads((run / "results.json").read_text())["non_finite_steps"] == 2
    assert [step for step, loss in losses(run).items() if loss == "nan"] == [3, 4]
    weights = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(x.isfinite().all() for x in weights.values())


@pytest.mark.slow
def test_skipping_ends_when_every_step_is_skipped(damage, train, capsys):
    damage("gradient", range(2, 100))
    with pytest.raises(SystemExit):
        train(*OPTIONS, "task.non_finite=skip")
    assert "step 12: " in (error := capsys.readouterr().err) and "10 steps before" in error


@pytest.mark.slow
def test_training_goes_on_where_that_is_asked(damage, train, capsys):
    damage("gradient", {3})
    with pytest.raises(SystemExit):  # as the weights are lost: val/loss is nan
        train(*OPTIONS, "task.non_finite=continue", "trainer.gradient_clip_val=null")
    captured = capsys.readouterr()
    assert f"step 3: the gradient of {LAYER}.weight is not finite: training goes on" in captured.out
    assert "val/loss is nan" in captured.err


def test_an_unknown_response_is_refused(train, capsys):
    with pytest.raises(SystemExit):
        train("task.non_finite=skpi")
    assert "skip" in capsys.readouterr().err
