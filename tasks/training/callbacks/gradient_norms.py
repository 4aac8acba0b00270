"""Norms of the gradients of each part of a model."""

from itertools import accumulate
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from attention_zoo.models.blocks import Sublayer
from attention_zoo.tasks.training.callbacks.triggers import is_log_step
from attention_zoo.tasks.training.shared_tensors import gather_tensors


class GradientNorms(Callback):
    """Log ‖∇L‖₂ of each part of the model every `trainer.log_every_n_steps` steps.

    The names are `gradients/decoder.layers.0.cross_attention` and so on, and `gradients/all` for
    the whole model. L is the mean over the target tokens of a step. The norms are those before
    `trainer.gradient_clip_val` clips them. A part is a sublayer, or a module outside of all
    sublayers that has parameters itself, by its name in the model.
    """

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if not is_log_step(trainer, trainer.global_step + 1):
            return
        task: Any = pl_module
        # The task divides the gradients after its callbacks have run.
        scale, parts = task.gradient_scale(), gradients_by_part(task.model)
        norms = gather_tensors({name: get_total_norm(x) for name, x in parts.items()})
        norms = {name: norm * scale for name, norm in norms.items()}
        norms["all"] = get_total_norm(list(norms.values()))
        task.log_dict({f"gradients/{name}": norm for name, norm in norms.items()})


def gradients_by_part(model: nn.Module) -> dict[str, list[Tensor]]:
    """Return all gradients, by the name of the part that they belong to."""
    modules = dict(model.named_modules())
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        owners = list(accumulate(name.split(".")[:-1], "{}.{}".format))
        part = next((x for x in owners if isinstance(modules[x], Sublayer)), owners[-1])
        parts.setdefault(part, []).append(parameter.grad)
    return parts
