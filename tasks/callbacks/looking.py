"""How callbacks look at a model in the middle of training without disturbing it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningModule, Trainer


@contextmanager
def undisturbed(task: LightningModule) -> Iterator[None]:
    """Evaluation mode without gradients; modes and random states are put back afterwards."""
    modes = {module: module.training for module in task.modules()}
    devices = [task.device] if task.device.type == "cuda" else []
    task.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def due(trainer: Trainer, validations: int, every: int) -> bool:
    """Whether the `validations`-th validation of this run is one of every `every` to look at.

    The last validation of the run is not: the end of training looks again,
    at the weights that are kept.
    """
    running = trainer.global_step < trainer.estimated_stepping_batches
    return running and validations % every == 0
