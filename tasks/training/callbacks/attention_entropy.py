"""The entropy of each attention head during training."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from attention_zoo.errors import check_positive
from attention_zoo.tasks.training.callbacks.periodic_inspection import InspectionCallback


class AttentionEntropy(InspectionCallback):
    """Log the entropy of every head as `attention_entropy/cross/layer-0/head-0` and so on.

    Entropy is in nats: 0 if each query attends to one key only, ln k if it attends to k keys
    equally. It is the mean over the queries of some samples of the valid split, always the same
    ones, by teacher forcing. Roles are `encoder`, `decoder` and `cross`.

    Args:
        every_n_validations: compute at every n-th validation; the end of training always does.
        samples: number of samples, at even intervals over the split.
    """

    label = "attention entropy"

    def __init__(self, *, every_n_validations: int = 1, samples: int = 8) -> None:
        super().__init__(every_n_validations=every_n_validations)
        check_positive(samples=samples)
        self.samples = samples

    def inspect(self, trainer: Trainer, task: Any) -> None:
        sums: dict[str, Tensor] = {}
        for maps in task.attention_maps(self.sample_batch(trainer, task)):
            for role, layers in maps.items():
                for layer, weights in enumerate(layers):
                    name = f"{role}/layer-{layer}"
                    row_sums = torch.stack(sum_row_entropies(weights.double()))
                    sums[name] = sums.get(name, 0) + row_sums.cpu()
        entropies = {
            f"attention_entropy/{name}/head-{head}": entropy
            for name, (entropy, rows) in sums.items()
            for head, entropy in enumerate((entropy / rows).tolist())
        }
        for logger in trainer.loggers:
            logger.log_metrics(entropies, trainer.global_step)

    def sample_batch(self, trainer: Trainer, task: Any) -> Any:
        """Return the samples as a batch of the valid split."""
        loader = trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
        indices = np.concatenate(loader.sampler.rank_batches())
        picks = np.linspace(0, len(indices) - 1, min(self.samples, len(indices))).round()
        batch = loader.dataset[indices[picks.astype(int)].tolist()]
        return task.transfer_batch_to_device(batch, task.device, 0)


def sum_row_entropies(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the entropies of the rows of weights [b h q k]: sums [h] and numbers of rows [h].

    H = −Σ_k p_k ln p_k with p_k = |a_k| / Σ_j |a_j| for the weights a of a query. So weights that
    are negative, or do not sum to one, count by their share. Rows without any weight are left out.
    """
    sizes = weights.abs()
    totals = sizes.sum(dim=-1, keepdim=True)
    shares = sizes / totals.clamp(min=torch.finfo(sizes.dtype).tiny)
    rows = (totals > 0).sum(dim=(0, 2, 3))
    return torch.special.entr(shares).sum(dim=(0, 2, 3)), rows
