"""Checkpoint averaging: the mean of the weights at the last validations."""

from collections import deque
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from attention_zoo.errors import UserError
from attention_zoo.tasks.run_folder import AVERAGED_CHECKPOINT
from attention_zoo.tasks.training.callbacks.triggers import is_fit_validation
from attention_zoo.tasks.training.shared_tensors import distribute_like, gather_tensors


class CheckpointAveraging(Callback):
    """End training with theta = (theta_1 + ... + theta_K) / K, the mean of the last K validations.

    Each validation copies the weights to host memory, K copies at most. Checkpoints hold the copies
    too, so that a resumed run has the same mean. At the end of training the mean replaces the
    weights, and is saved as `averaged.ckpt`, which loads like any other checkpoint but holds no
    optimiser state. Best and last checkpoints keep the trained weights. Lightning's
    `WeightAveraging` keeps a mean over the whole run or an exponential one, and validates with it.

    Args:
        dirpath: folder of `averaged.ckpt`.
        last: K, the number of validations to average.

    Raises:
        UserError: `last` is below 1.

    Source: Vaswani et al. 2017, arXiv:1706.03762 §6.1, which averages the last 5 or 20 checkpoints.
    """

    def __init__(self, *, dirpath: str | Path, last: int = 5) -> None:
        if last < 1:
            raise UserError(f"last must be at least 1 validation, got {last}.")
        self.path = Path(dirpath) / AVERAGED_CHECKPOINT
        self.snapshots: deque[dict[str, Tensor]] = deque(maxlen=last)
        self._has_averaged = False

    def state_dict(self) -> dict[str, Any]:
        return {"snapshots": list(self.snapshots)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.snapshots.clear()
        self.snapshots.extend(state_dict["snapshots"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_fit_validation(trainer):
            weights = gather_tensors(dict(pl_module.named_parameters()))
            copies = {name: x.detach().to("cpu", copy=True) for name, x in weights.items()}
            self.snapshots.append(copies)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.snapshots:
            return
        self._has_averaged = True
        with torch.no_grad():
            for name, parameter in pl_module.named_parameters():
                # In double precision, so that rounding does not depend on their number.
                values = torch.stack([snapshot[name].double() for snapshot in self.snapshots])
                parameter.copy_(distribute_like(parameter, values.mean(0).to(parameter)))
        trainer.save_checkpoint(self.path, weights_only=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run that goes on after its last step has no end of training.
        if not self._has_averaged:
            self.on_train_end(trainer, pl_module)
