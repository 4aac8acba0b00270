"""What the tasks share: optimisation, losses per target token, whole checkpoints."""

from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import Metric

from attention_zoo.attention.base import take_auxiliary_loss
from attention_zoo.capture import Maps
from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.build import build_task
from attention_zoo.tasks.data.tokenizers import Tokenizer, tokenizer_from_state
from attention_zoo.tasks.training.metrics import BitsPerByte, Perplexity, TokenLoss
from attention_zoo.tasks.training.ranks import require_equal_ranks
from attention_zoo.tasks.views.attention_record import AttentionRecord

IGNORE_INDEX = -100  # a target that is not predicted


class Task(LightningModule):
    """A model in training. Subclasses say what a batch is.

    Args:
        model: of the zoo, or anything with its interface.
        tokenizer: between text and tokens.
        optimizer: called with the model.
        schedule: called with the optimiser and `total_steps`.
        decoding: how text is written: `Greedy`, `Beam` or `Sample`.
        label_smoothing: share of the target's probability spread over the vocabulary (Szegedy et
            al. 2016); for training only, losses that are reported for evaluation are without.
        composed: the config that all of this is from, in plain containers. Kept in checkpoints.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        tokenizer: Tokenizer,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[..., Any],
        decoding: Callable[..., Any],
        label_smoothing: float = 0.0,
        composed: dict[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.new_optimizer = optimizer
        self.new_schedule = schedule
        self.decoding = decoding
        self.label_smoothing = label_smoothing
        self.composed = composed
        self.metrics = nn.ModuleDict()
        self.token_bytes: Tensor
        self.register_buffer("token_bytes", torch.tensor(tokenizer.token_bytes), persistent=False)
        # Target tokens of the step so far; loss, auxiliary loss and tokens since the last log.
        self.step_tokens: Tensor
        self.since_log: Tensor
        self.register_buffer("step_tokens", torch.zeros(()), persistent=False)
        self.register_buffer("since_log", torch.zeros(3), persistent=False)
        # What the model wrote for the split that was scored last, by the number of the line; empty
        # where its text is not scored.
        self.outputs: dict[int, str] = {}
        # Whether the model's attention has a loss of its own.
        self.has_auxiliary_loss = False

    # What a table of samples calls the lines that `respond` is given, and what it gives.
    words: tuple[str, str]
    # Whether a validation scores what the model writes too. It takes many times as long: not in
    # training, where the loss is enough.
    writes_at_validation = False

    def predict_batch(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Logits [b t v] by teacher forcing and targets [b t], `IGNORE_INDEX` where there are none."""
        raise NotImplementedError

    def respond(self, lines: list[str]) -> list[str]:
        """What the model writes for each line: its translation, or its continuation."""
        raise NotImplementedError

    def attend(self, line: str) -> AttentionRecord:
        """The attention over a line, and over what is written for it, if anything is."""
        raise NotImplementedError

    def attention_maps(self, batch: Any) -> Iterator[Maps]:
        """The weights [1 h q k] over each row of a batch, by role and layer: without padding."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Before anything is computed: all processes must do the same."""
        require_equal_ranks(self.trainer, self.composed)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.new_optimizer(self.model)
        schedule = self.new_schedule(optimizer, total_steps=self.trainer.estimated_stepping_batches)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def training_step(self, batch: Any, _: int) -> dict[str, Any]:
        """The loss summed over the batch's tokens. `on_before_optimizer_step` makes it a mean.

        A loss of the attention's own, a mean over tokens, counts as much as the task's. What is
        shown and logged as the loss is without it.
        """
        logits, targets = self.predict_batch(batch)
        loss = cross_entropy(
            logits.flatten(0, 1),
            targets.flatten(),
            ignore_index=IGNORE_INDEX,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        tokens = (targets != IGNORE_INDEX).sum()
        self.step_tokens += tokens
        auxiliary = take_auxiliary_loss(self.model)
        self.has_auxiliary_loss = auxiliary is not None
        weighted = loss.new_zeros(()) if auxiliary is None else auxiliary * tokens
        self.since_log += torch.stack([loss.detach(), weighted.detach(), tokens])
        return {"loss": loss + weighted, "task_loss": loss.detach(), "tokens": tokens}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the target tokens of the whole step.

        Over all ranks and micro-batches together: so a step is the same however it is divided. DDP
        has averaged over ranks, and Lightning over micro-batches; both are undone here.
        """
        scale = self.gradient_scale()
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        self.step_tokens.zero_()
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a connector
        if every and (self.trainer.global_step + 1) % every == 0:
            loss, auxiliary, tokens = self.reduced(self.since_log)
            self.log("train/loss", loss / tokens)
            if self.has_auxiliary_loss:
                self.log("train/auxiliary_loss", auxiliary / tokens)
            self.since_log.zero_()

    def gradient_scale(self) -> Tensor:
        """What makes the gradients of the step that is due those of a mean over its tokens."""
        parts = self.trainer.world_size * self.trainer.accumulate_grad_batches
        return parts / self.reduced(self.step_tokens)

    def on_train_batch_end(self, *_: Any) -> None:
        """End with a validation, whatever the length of the run."""
        if self.trainer.global_step >= self.trainer.estimated_stepping_batches:
            self.trainer.should_stop = True

    def reduced(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks."""
        return self.trainer.strategy.reduce(tensor.clone(), reduce_op="sum")

    def validation_step(self, batch: Any, _: int) -> None:
        self.score(batch, "val")

    def test_step(self, batch: Any, _: int) -> None:
        self.score(batch, "test")

    def score(self, batch: Any, split: str) -> None:
        """Losses by teacher forcing, without label smoothing."""
        logits, targets = self.predict_batch(batch)
        self.update_loss_metrics(token_losses(logits, targets), targets, split)

    def update_loss_metrics(self, losses: Tensor, targets: Tensor, split: str) -> None:
        """Loss, perplexity and bits per byte of targets [b t], by their losses [b t]."""
        nll, counted = losses.sum(), targets != IGNORE_INDEX
        self.update_metric(TokenLoss, metric_name("loss", split), nll, counted.sum())
        self.update_metric(Perplexity, metric_name("perplexity", split), nll, counted.sum())
        spelled = self.token_bytes[targets[counted]].sum()
        self.update_metric(BitsPerByte, metric_name("bits_per_byte", split), nll, spelled)

    def update_metric(self, kind: Callable[[], Metric], name: str, *counted: Any) -> None:
        """Add to the metric of this name, which is logged once the split is through."""
        if name not in self.metrics:
            self.metrics[name] = kind().to(self.device)
        metric = cast(Metric, self.metrics[name])
        metric.update(*counted)
        self.log(
            name,
            metric,
            on_epoch=True,
            on_step=False,
            add_dataloader_idx=False,
            metric_attribute=f"metrics.{name}",
        )

    def manifest(self) -> dict[str, Any]:
        """What to know of the metrics' making, for `results.json`."""
        return {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """All that it takes to use the model: the config and the tokenizer, in plain containers."""
        checkpoint["attention_zoo"] = {
            "version": version("attention-zoo"),
            "config": self.composed,
            "tokenizer": self.tokenizer.state(),
        }


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The negative log-likelihood of targets [b t], zero where there are none."""
    losses = cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return losses.view_as(targets)


def metric_name(metric: str, split: str) -> str:
    """`test/loss` of `test`, `test/loss@128` of `test@128`, and `test/sliding_loss@128` of
    `test@128 sliding`.
    """
    split, at, rest = split.partition("@")
    length, _, how = rest.partition(" ")
    return f"{split}/{how}{'_' if how else ''}{metric}{at}{length}"


def logged(trainer: Trainer, prefix: str) -> dict[str, Any]:
    """The metrics of a split, as last logged."""
    return {
        name: value.item()
        for name, value in sorted(trainer.callback_metrics.items())
        if name.startswith(prefix)
    }


def load_task(checkpoint: dict[str, Any], config: dict[str, Any]) -> Any:
    """The `Task` in a checkpoint, under a config that may differ from that of its training.

    Raises:
        UserError: the config's model has other weights than the checkpoint.
    """
    task = build_task(config, tokenizer_from_state(checkpoint["attention_zoo"]["tokenizer"]))
    theirs, ours = checkpoint["state_dict"], task.state_dict()
    fault = next(
        (
            f"{name} is {described(theirs.get(name))} there, and {described(ours.get(name))} here"
            for name in (*ours, *theirs)
            if described(theirs.get(name)) != described(ours.get(name))
        ),
        None,
    )
    if fault is not None:
        raise UserError(
            f"the checkpoint's weights are not those of the model that is composed: {fault}. Only "
            "what has no weights of its own can be chosen anew, such as position=yarn for rotary."
        )
    task.load_state_dict(theirs)
    return task.eval()


def described(weights: Tensor | None) -> str:
    return "missing" if weights is None else str(list(weights.shape))
