"""A task clips its gradients by the norm that it has already, as Lightning would."""

import pytest
import torch

from attention_zoo.tasks.training.task import Task
from tests.tasks.test_translation import LINES, SMALL

RUN = [*SMALL, *LINES, "callbacks=minimal", "logger=none", "trainer.max_steps=4", "test=false"]
CLIPPING = {
    "all steps": ["trainer.gradient_clip_val=0.01"],
    "no step": ["trainer.gradient_clip_val=1e6"],
    "none": ["trainer.gradient_clip_val=null"],
    "by value": ["trainer.gradient_clip_val=1e-3", "+trainer.gradient_clip_algorithm=value"],
    "accumulated": ["trainer.gradient_clip_val=0.01", "trainer.accumulate_grad_batches=2"],
}


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("options", CLIPPING.values(), ids=CLIPPING)
def test_the_weights_are_those_of_lightnings_clipping(train, monkeypatch, options):
    options = [*RUN, "trainer.precision=64-true", "optimizer=adamw", *options]
    ours = weights(train(*options))
    is_step_finite = Task.is_step_finite

    def without_norm(task):
        is_finite = is_step_finite(task)
        task.gradient_norm = None
        return is_finite

    monkeypatch.setattr(Task, "is_step_finite", without_norm)
    torch.testing.assert_close(ours, weights(train(*options)), rtol=1e-9, atol=1e-12)


def test_a_norm_is_computed_once_in_a_step(train, monkeypatch):
    def refuse(*_):
        raise AssertionError("the norm is known")

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", refuse)
    assert weights(train(*RUN))
