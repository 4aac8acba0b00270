"""How widely each head looks, over the course of a training."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from attention_zoo.errors import UserError
from attention_zoo.tasks.training.callbacks.periodic_inspection import InspectionCallback


class AttentionEntropy(InspectionCallback):
    """Logs the entropy of every head as `attention_entropy/cross/layer-1/head-1` and so on, in
    nats: 0 where each query looks at one key only, ln k where it looks at k keys alike.

    It is the mean over the queries of some samples of the valid split, the same at every look.
    Their targets are given, not written by the model. Roles are `encoder`, `decoder` and `cross`.

    Args:
        every_n_validations: look at every n-th validation; the end of training always does.
        samples: their number; they are spread evenly over the split.

    Raises:
        UserError: `every_n_validations` or `samples` is below 1.
    """

    label = "attention entropy"

    def __init__(self, *, every_n_validations: int = 1, samples: int = 8) -> None:
        super().__init__(every_n_validations=every_n_validations)
        if samples < 1:
            raise UserError(f"samples must be at least 1, got {samples}.")
        self.samples = samples

    def look(self, trainer: Trainer, task: Any) -> None:
        sums: dict[str, Tensor] = {}
        for maps in task.attention_maps(self._batch(trainer, task)):
            for name, weights in by_layer(maps):
                queries = torch.stack(entropy_of_rows(weights.double()))
                sums[name] = sums.get(name, 0) + queries.cpu()
        entropies = {
            f"attention_entropy/{name}/head-{head}": entropy
            for name, (entropy, rows) in sums.items()
            for head, entropy in enumerate((entropy / rows).tolist(), start=1)
        }
        for logger in trainer.loggers:
            logger.log_metrics(entropies, trainer.global_step)

    def _batch(self, trainer: Trainer, task: Any) -> Any:
        """The samples, as a batch of the valid split."""
        loader = trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
        places = np.concatenate(loader.sampler.rank_batches())
        chosen = np.linspace(0, len(places) - 1, min(self.samples, len(places))).round()
        batch = loader.dataset[places[chosen.astype(int)].tolist()]
        return task.transfer_batch_to_device(batch, task.device, 0)


def by_layer(maps: dict[str, list[Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Maps [1 h q k] by the names of their role and layer."""
    for role, layers in maps.items():
        for layer, weights in enumerate(layers, start=1):
            yield f"{role}/layer-{layer}", weights


def entropy_of_rows(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the queries of weights [b h q k] of their entropies [h], and numbers of them [h].

    H = −Σ_k p_k ln p_k with p_k = |a_k| / Σ_j |a_j| for the weights a of a query. So weights that
    have signs, or do not sum to one, count by their share. A query without any weight is left out.
    """
    sizes = weights.abs()
    totals = sizes.sum(dim=-1, keepdim=True)
    shares = sizes / totals.clamp(min=torch.finfo(sizes.dtype).tiny)
    rows = (totals > 0).sum(dim=(0, 2, 3))
    return torch.special.entr(shares).sum(dim=(0, 2, 3)), rows
