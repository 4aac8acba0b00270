"""Losses of a batch's targets; of a large vocabulary, without all logits at once."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy

from attention_zoo.models import LanguageModel, Seq2Seq
from attention_zoo.models.chunked_cross_entropy import (
    chunk_tokens,
    chunked_cross_entropy,
    max_logits,
)
from attention_zoo.precision import is_autocast_enabled, upcast
from attention_zoo.tasks.data.batches import IGNORE_INDEX


class TargetLosses:
    """The part of a task that knows what its model predicts, and the losses of that.

    A task defines `call_model` and `find_targets`; a user's own may define `predict_batch` instead.
    """

    model: nn.Module
    label_smoothing: float

    def call_model(self, batch: Any, **options: Any) -> Tensor:
        """Return the logits [b t v] of a batch by teacher forcing; the options are the model's."""
        raise NotImplementedError

    def find_targets(self, batch: Any) -> Tensor:
        """Return the targets [b t] of a batch; `IGNORE_INDEX` where there are none."""
        raise NotImplementedError

    def predict_batch(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return logits [b t v] by teacher forcing, and targets [b t] (`IGNORE_INDEX`: none)."""
        return self.call_model(batch), self.find_targets(batch)

    def training_loss(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the training loss of a batch, summed over its targets, and these [b t]."""
        options: Any = {"ignore_index": IGNORE_INDEX, "label_smoothing": self.label_smoothing}
        if not self.has_many_logits(batch):
            logits, targets = self.predict_batch(batch)
            flat = logits.flatten(0, 1), targets.flatten()
            return cross_entropy(*flat, reduction="sum", **options), targets
        hidden, targets = self.call_model(batch, head=return_hidden), self.find_targets(batch)
        flat = hidden.flatten(0, 1), targets.flatten()
        return chunked_cross_entropy(self.output_head, *flat, **options), targets

    def token_losses(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the losses [b t] of the targets [b t], without label smoothing, and these."""
        if not self.has_many_logits(batch):
            logits, targets = self.predict_batch(batch)
            return token_losses(logits, targets), targets
        hidden, targets = self.call_model(batch, head=return_hidden), self.find_targets(batch)
        head = self.output_head
        chunks = chunk_tokens(hidden.flatten(0, 1), targets.flatten(), head.out_features)
        losses = [token_losses(head(x)[None], y[None])[0] for x, y in chunks]
        return torch.cat(losses).view_as(targets), targets

    @property
    def output_head(self) -> nn.Linear:
        """Return the head of a model of the zoo, which computes its logits."""
        return cast(LanguageModel | Seq2Seq, self.model).head

    def has_many_logits(self, batch: Any) -> bool:
        """Return whether the logits of a batch are so many that the loss takes them in chunks.

        Where something else has a say in them, the loss takes them all at once: a `predict_batch`
        or a model of a user's own, and weights that devices share. So it does in float16, in which
        a loss is scaled before gradients are computed.
        """
        own_prediction = type(self).predict_batch is not TargetLosses.predict_batch
        if own_prediction or type(self.model) not in (LanguageModel, Seq2Seq):
            return False
        weight: Tensor = self.output_head.weight
        if isinstance(weight, DTensor) or (
            is_autocast_enabled(weight)
            and torch.get_autocast_dtype(weight.device.type) == torch.float16
        ):
            return False
        return self.find_targets(batch).numel() * len(weight) > max_logits(weight.device)


def return_hidden(hidden: Tensor) -> Tensor:
    """Return hidden states as they are, in place of a model's head."""
    return hidden


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of targets [b t], zero where there are none."""
    flat_logits, flat_targets = upcast(logits.flatten(0, 1)), targets.flatten()
    losses = cross_entropy(flat_logits, flat_targets, ignore_index=IGNORE_INDEX, reduction="none")
    return losses.view_as(targets)
