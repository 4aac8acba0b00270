"""The base of the tasks: optimisation, losses per target token, self-contained checkpoints."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torchmetrics import Metric

from attention_zoo.attention.base import take_auxiliary_loss
from attention_zoo.capture import Maps
from attention_zoo.errors import BadInput, TrainingDiverged, UserError, short_repr
from attention_zoo.tasks.configuration.build import build_task, refuse_untrusted_targets
from attention_zoo.tasks.configuration.renamed_options import upgrade_checkpoint
from attention_zoo.tasks.configuration.validation import validate
from attention_zoo.tasks.data.batches import IGNORE_INDEX
from attention_zoo.tasks.data.tokenizers import Tokenizer, check_state, tokenizer_from_state
from attention_zoo.tasks.training.checkpoints import compare_weights, read_checkpoint
from attention_zoo.tasks.training.losses import TargetLosses
from attention_zoo.tasks.training.metrics import BitsPerByte, Perplexity, TokenLoss
from attention_zoo.tasks.training.non_finite import (
    MAX_SKIPPED_IN_A_ROW,
    RESPONSES,
    explain_non_finite,
)
from attention_zoo.tasks.training.ranks import gather, require_equal_ranks
from attention_zoo.tasks.training.restoring import (
    complete_progress,
    move_best_checkpoints,
    rank_state,
    restore_position,
    restore_rank_state,
    set_composed_rates,
    validate_first,
)
from attention_zoo.tasks.training.shared_tensors import gather_tensors
from attention_zoo.tasks.views.attention_record import AttentionRecord
from attention_zoo.zoo import unknown_name_message

# Of a composed config, those that a task is built from.
REQUIRED_NODES = (
    *("task", "model", "attention", "position", "optimizer", "schedule", "decoding"),
    *("data", "tokenizer", "seed"),
)
# Groups that a trained task is used without.
NOT_BUILT = ("data", "trainer", "callbacks", "logger")


class StepOutput(NamedTuple):
    """The report of a training step to callbacks."""

    loss: Tensor  # [], summed over the target tokens; without an auxiliary loss of the attention
    tokens: Tensor  # [], the number of these tokens


class Task(TargetLosses, LightningModule):
    """A model in training. Subclasses define what a batch is.

    Args:
        model: a model of the zoo, or one with the same interface.
        tokenizer: converts between text and tokens.
        optimizer: factory, called with the model.
        schedule: factory, called with the optimiser and `total_steps`.
        decoding: how text is generated: `Greedy`, `Beam` or `Sample`.
        non_finite: what to do when a loss or a gradient is not finite: "stop" the training with an
            error, "skip" the step, or "continue". Each names the step and the layer.
        label_smoothing: share of the target's probability that is spread over the vocabulary
            (Szegedy et al. 2016). Training only: evaluation reports losses without it.
        config: the whole config in plain containers, for checkpoints; {} if the task is built from
            Python. Its checkpoint is then read by `load_from_checkpoint` with these arguments.

    Raises:
        UserError: a config that is neither empty nor whole; a tokenizer that its state would bring
            back as another class.
    """

    # Titles of the input and the output of `generate`, for the table of samples.
    sample_columns: tuple[str, str]
    # Validation in training scores no generated text: that takes many times as long as the loss.
    generates_in_validation = False

    def __init__(
        self,
        *,
        model: nn.Module,
        tokenizer: Tokenizer,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[..., Any],
        decoding: Callable[..., Any],
        label_smoothing: float = 0.0,
        non_finite: str = "stop",
        config: dict[str, Any],
    ) -> None:
        super().__init__()
        if not isinstance(config, Mapping) or (config and missing_groups(config)):
            raise UserError(
                "config must be a composed one, with "
                f"{', '.join(REQUIRED_NODES)}; or {{}} for a task that is built from Python."
            )
        if not 0.0 <= label_smoothing <= 1.0:
            raise UserError(
                f"task.label_smoothing must lie between 0 and 1, got {label_smoothing}."
            )
        if non_finite not in RESPONSES:
            raise UserError(unknown_name_message("task.non_finite", non_finite, list(RESPONSES)))
        check_state(tokenizer)
        self.model = model
        self.tokenizer = tokenizer
        self.optimizer_factory = optimizer
        self.schedule_factory = schedule
        self.decoding = decoding
        self.label_smoothing = label_smoothing
        self.non_finite = non_finite
        self.config = config
        self.metrics = nn.ModuleDict()
        self.token_bytes: Tensor = nn.Buffer(torch.tensor(tokenizer.token_bytes), persistent=False)
        self.last_step: StepOutput
        # Target tokens of the optimizer step so far.
        self.step_tokens: Tensor = nn.Buffer(torch.zeros(()), persistent=False)
        # Sums of loss, auxiliary loss and target tokens since the last log.
        self.running_sums: Tensor = nn.Buffer(torch.zeros(3), persistent=False)
        # What the gradients of this step are multiplied by, and their norm before that.
        self.scale: Tensor
        self.gradient_norm: Tensor | None = None
        self.has_auxiliary_loss = False
        # The batches of the optimizer step so far, with what each adds to `running_sums`.
        self.step_batches: list[tuple[Any, Tensor]] = []
        self.non_finite_steps = 0
        self.non_finite_in_a_row = 0
        # Generated text of the last scored split, by line number; empty if no text is scored.
        self.outputs: dict[int, str] = {}
        # Of a checkpoint to resume from, by rank; None if there is none.
        self.rank_states: list[dict[str, Any]] | None = None
        self.composed_groups: list[dict[str, Any]] = []
        # A signal has cut off a validation: a checkpoint holds the random state before it.
        self.is_validation_due = False
        self.state_before_validation: dict[str, Any] = {}

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # without Lightning's options for pickles
        cls,
        checkpoint_path: str | Path,
        map_location: torch.device | str | None = None,
        **options: Any,
    ) -> Self:
        """Return the task in a checkpoint, in evaluation mode, as `attention_zoo.tasks.load` does.

        Args:
            checkpoint_path: the file; nothing in it is executed.
            map_location: the device of the task; default: the CPU.
            options: the arguments of a task whose config is empty, without `tokenizer` and
                `config`, which the checkpoint holds.

        Raises:
            BadInput: no such file, or not a checkpoint of this project.
            UserError: a checkpoint of another task, or of other weights; options that are missing,
                or that the checkpoint's own config decides.
        """
        checkpoint = read_checkpoint(Path(checkpoint_path))
        contents = checkpoint["attention_zoo"]
        config = contents["config"]
        if config and options:
            raise UserError(
                f"{checkpoint_path} has a config that decides {', '.join(options)}; leave the "
                "options out, or change a copy of the config and call load_task."
            )
        if options:
            tokenizer = tokenizer_from_state(contents["tokenizer"])
            task: Any = cls(**options, tokenizer=tokenizer, config=config)
            load_weights(task, checkpoint)
        else:
            task = load_task(checkpoint, config)
        if not isinstance(task, cls):
            kind = type(task).__name__
            raise UserError(
                f"{checkpoint_path} is a checkpoint of {kind}, not of {cls.__name__}; use "
                f"{kind}.load_from_checkpoint."
            )
        return task.to(map_location or "cpu").eval()

    def generate(self, lines: list[str]) -> list[str]:
        """Return what the model generates for each line: its translation, or its continuation."""
        raise NotImplementedError

    def attend(self, line: str) -> AttentionRecord:
        """Return the attention over a line, and over its translation if the task translates."""
        raise NotImplementedError

    def attention_maps(self, batch: Any) -> Iterator[Maps]:
        """Yield the weights [1 h q k] of each row of a batch without padding, by role and layer."""
        raise NotImplementedError

    def describe_troubles(self, line: str) -> dict[str, str]:
        """Return what the model cannot read of a line: of any line, and of this one."""
        unknown = self.tokenizer.unknown_characters(line)
        if not unknown:
            return {}
        shown = "".join(dict.fromkeys(unknown))
        return {
            "have characters that the model does not know": (
                f"has {len(unknown)} characters that the model does not know, of {len(line)}: "
                f"{shown[:20]}{'…' * (len(shown) > 20)}; train with tokenizer=bpe or bytes"
            )
        }

    def metric_signatures(self) -> dict[str, Any]:
        """Return entries of `results.json` that say how metrics were computed."""
        return {}

    def setup(self, stage: str) -> None:
        require_equal_ranks(self.trainer, self.config)
        self.outputs = {}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.optimizer_factory(self.model)
        steps = self.trainer.estimated_stepping_batches
        schedule = self.schedule_factory(optimizer, total_steps=steps)
        options = [{**group} for group in optimizer.param_groups]
        self.composed_groups = [{k: x for k, x in y.items() if k != "params"} for y in options]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Any, _: int) -> Tensor:
        """Return the loss summed over the batch's tokens; `last_step` reports it to callbacks.

        `configure_gradient_clipping` makes the gradients those of a mean. An auxiliary loss of the
        attention, a mean over tokens, has the same weight as the task's.
        """
        loss, targets = self.training_loss(batch)
        tokens = (targets != IGNORE_INDEX).sum()
        self.step_tokens += tokens
        auxiliary = take_auxiliary_loss(self.model)
        self.has_auxiliary_loss = auxiliary is not None
        weighted = loss.new_zeros(()) if auxiliary is None else auxiliary * tokens
        sums = torch.stack([loss.detach(), weighted.detach(), tokens])
        self.step_batches.append((batch, sums))
        self.last_step = StepOutput(loss.detach(), tokens)
        return loss + weighted

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Find what `configure_gradient_clipping` is to multiply the gradients by.

        Every `log_every_n_steps`, log the mean losses since the last time. A step that is not
        finite is dealt with as `non_finite` says.
        """
        self.scale = self.gradient_scale()
        self.step_tokens.zero_()
        is_finite = self.is_step_finite()
        if not is_finite:
            self.respond_to_non_finite_step()
        self.non_finite_in_a_row = 0 if is_finite else self.non_finite_in_a_row + 1
        if is_finite or self.non_finite == "continue":
            for _, sums in self.step_batches:
                self.running_sums += sums
        self.step_batches.clear()
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a connector
        if every and (self.trainer.global_step + 1) % every == 0:
            loss, auxiliary, tokens = self.sum_over_ranks(self.running_sums)
            self.log("train/loss", loss / tokens)  # NaN if all steps were skipped
            if self.has_auxiliary_loss:
                self.log("train/auxiliary_loss", auxiliary / tokens)
            self.running_sums.zero_()

    def is_step_finite(self) -> bool:
        """Return whether losses and gradients of this step are finite, on all ranks."""
        values = [sums[:2].sum() for _, sums in self.step_batches]
        # A scaler of float16 makes infinite gradients now and then, and skips their steps itself.
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:
            # On a CPU the largest of absolute values takes eight times as long as this norm.
            norm = get_total_norm(self.gradients())
            values.append(gather_tensors(norm))
            # Strategies that divide gradients clip them by a norm of their own.
            self.gradient_norm = None if isinstance(norm, DTensor) else norm
        is_finite = torch.stack([value.isfinite().to(self.device) for value in values]).all()
        return not self.sum_over_ranks((~is_finite).float())

    def respond_to_non_finite_step(self) -> None:
        """Name step and layer, and skip the step or raise TrainingDiverged, as `non_finite` says.

        A step without gradients changes nothing but the schedule.
        """
        self.non_finite_steps += 1
        forwards = [partial(self.predict_batch, batch) for batch, _ in self.step_batches]
        reason = f"step {self.trainer.global_step + 1}: {explain_non_finite(self.model, forwards)}"
        if self.non_finite == "stop":
            raise TrainingDiverged(f"{reason}. Try a lower optimizer.lr, or task.non_finite=skip.")
        if self.non_finite == "skip":
            if self.non_finite_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise TrainingDiverged(
                    f"{reason}, like the {MAX_SKIPPED_IN_A_ROW} steps before, which were skipped. "
                    "Try a lower optimizer.lr."
                )
            self.print(f"{reason}: skipped")
            self.zero_grad(set_to_none=True)
        elif not self.non_finite_in_a_row:
            self.print(f"{reason}: training goes on")

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Divide the gradients by the target tokens of all ranks and micro-batches, and clip them.

        The norm of all gradients, which the check of the step has found, serves the clipping too.
        """
        limit, factor, norm = gradient_clip_val or 0.0, self.scale, self.gradient_norm
        self.gradient_norm = None
        if limit > 0.0 and norm is not None and gradient_clip_algorithm != "value":
            # As in torch.nn.utils.clip_grad_norm_.
            factor = factor * (limit / (norm * factor + 1e-6)).clamp(max=1.0)
            limit = 0.0
        for gradient in self.gradients():
            gradient.mul_(factor)
        if limit > 0.0:
            self.clip_gradients(optimizer, limit, gradient_clip_algorithm)

    def gradients(self) -> list[Tensor]:
        """Return the gradients of all parameters that have one."""
        return [x.grad for x in self.model.parameters() if x.grad is not None]

    def gradient_scale(self) -> Tensor:
        """Return the factor that makes the gradients of this step those of a mean over tokens."""
        # Undoes two means: DDP's over ranks and Lightning's over micro-batches.
        parts = self.trainer.world_size * self.trainer.accumulate_grad_batches
        return parts / self.sum_over_ranks(self.step_tokens)

    def special_ids(self) -> dict[str, int]:
        """Return the tokenizer's special ids, as arguments of the decoding."""
        ids = self.tokenizer
        return {"bos_id": ids.bos_id, "eos_id": ids.eos_id, "pad_id": ids.pad_id}

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks."""
        return self.trainer.strategy.reduce(tensor.clone(), reduce_op="sum")

    def on_train_start(self) -> None:
        """Restore what Lightning does not, in a training that goes on."""
        self.is_validation_due = False
        states, self.rank_states = self.rank_states, None
        if states is None:
            return
        restore_position(self.trainer)
        # With another number of ranks the data have their order, and dropout starts anew.
        if len(states) == self.trainer.world_size:
            restore_rank_state(states[self.global_rank], self.trainer, self.running_sums)
        override = self.config.get("ckpt_override", [])
        obeys_optimizer = any(name.partition(".")[0] == "optimizer" for name in override)
        set_composed_rates(self.trainer, self.composed_groups if obeys_optimizer else None)

    def on_train_batch_start(self, *_: Any) -> None:
        """Let loggers number the steps by the optimizer's, which they have to count themselves.

        Where a run goes on past the end that it had, Lightning has not counted the last one.
        """
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step

    def on_train_batch_end(self, *_: Any) -> None:
        """End the run with a validation, whatever its length."""
        if self.trainer.global_step >= self.trainer.estimated_stepping_batches:
            self.trainer.should_stop = True

    def validation_step(self, batch: Any, _: int) -> None:
        self.score(batch, "val")

    def test_step(self, batch: Any, _: int) -> None:
        self.score(batch, "test")

    def score(self, batch: Any, split: str) -> None:
        """Update the losses of a split, by teacher forcing and without label smoothing."""
        losses, targets = self.token_losses(batch)
        self.update_loss_metrics(losses, targets, split)

    def update_loss_metrics(self, losses: Tensor, targets: Tensor, split: str) -> None:
        """Update loss, perplexity and bits per byte from targets [b t] and their losses [b t]."""
        nll, is_target = losses.sum(), targets != IGNORE_INDEX
        self.update_metric(TokenLoss, "loss", split, nll, is_target.sum())
        self.update_metric(Perplexity, "perplexity", split, nll, is_target.sum())
        num_bytes = self.token_bytes[targets[is_target]].sum()
        self.update_metric(BitsPerByte, "bits_per_byte", split, nll, num_bytes)

    def update_metric(
        self, kind: Callable[[], Metric], metric_name: str, split: str, *values: Any
    ) -> None:
        """Update a metric, which is logged at the end of the split.

        The loss of `test` is `test/loss`, that of `test@128` is `test/loss@128`, and that of
        `test@128 sliding` is `test/sliding_loss@128`.
        """
        split, at, suffix = split.partition("@")
        length, _, windows = suffix.partition(" ")
        name = f"{split}/{windows}{'_' if windows else ''}{metric_name}{at}{length}"
        if name not in self.metrics:
            self.metrics[name] = kind().to(self.device)
        metric = cast(Metric, self.metrics[name])
        metric.update(*values)
        self.log(name, metric, add_dataloader_idx=False, metric_attribute=f"metrics.{name}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to use the model, the config and the tokenizer, and to go on."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        random_state, metrics = rank_state(self.trainer, self.running_sums), {}
        if self.is_validation_due:
            random_state = self.state_before_validation
            metrics = logged_metrics(self.trainer, "train/")
        checkpoint["attention_zoo"] = {
            "version": version("attention-zoo"),
            "config": self.config,
            "tokenizer": self.tokenizer.state(),
            "data_fingerprint": getattr(data, "fingerprint", None),
            "within_step": bool(self.step_tokens),
            "rank_states": gather(self.trainer, random_state),
            "validation_due": self.is_validation_due,
            "training_metrics": metrics,  # which the validation's callbacks may look at
            "non_finite_steps": self.non_finite_steps,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Translate a checkpoint of version 0.1 that Lightning has read, to resume from it."""
        upgrade_checkpoint(checkpoint)
        contents = checkpoint["attention_zoo"]
        self.non_finite_steps = contents.get("non_finite_steps", 0)
        if self._trainer is not None and self.trainer.state.fn == "fit":
            self.rank_states = contents.get("rank_states", [])
            is_due = contents.get("validation_due", False)
            complete_progress(checkpoint["loops"]["fit_loop"], is_validation_due=is_due)
            if is_due:
                validate_first(self.trainer, contents["training_metrics"])
            move_best_checkpoints(self.trainer, checkpoint)


def logged_metrics(trainer: Trainer, prefix: str) -> dict[str, Any]:
    """Return the last logged values of the metrics of a split."""
    return {
        name: value.item()
        for name, value in sorted(trainer.callback_metrics.items())
        if name.startswith(prefix)
    }


def load_task(checkpoint: dict[str, Any], config: dict[str, Any]) -> Any:
    """Return the `Task` in a checkpoint, with a config that may differ from the one in training.

    Raise UserError if the config's model has other weights than the checkpoint, and BadInput if the
    config is empty.
    """
    missing = missing_groups(config)
    if missing:
        raise BadInput(
            f"the checkpoint's config lacks {', '.join(missing)}: its task was built from Python. "
            "Load it so too: TranslationTask.load_from_checkpoint(path, model=…, optimizer=…, "
            "schedule=…, decoding=…)."
        )
    training_config = checkpoint["attention_zoo"]["config"]
    built = {x: node for x, node in config.items() if x not in NOT_BUILT}
    refuse_untrusted_targets(built, training_config)
    validate(config)
    task = build_task(config, tokenizer_from_state(checkpoint["attention_zoo"]["tokenizer"]))
    load_weights(task, checkpoint)
    return task.eval()


def missing_groups(config: Mapping[str, Any]) -> list[str]:
    """Return the nodes that a composed config has, and this one lacks."""
    return [name for name in REQUIRED_NODES if name not in config]


def load_weights(task: Task, checkpoint: dict[str, Any]) -> None:
    """Load the weights of a checkpoint, or raise UserError if the task has others."""
    differences = compare_weights(checkpoint["state_dict"], task.state_dict())
    for name, shapes in differences.items():
        there, here = ("missing" if shape is None else shape for shape in shapes)
        raise UserError(
            f"the checkpoint does not fit the composed model: {name} is {there} in the "
            f"checkpoint, and {here} in the model. Only options that change no weights may "
            "differ from those in training, such as position=yarn instead of rotary."
        )
    task.load_state_dict(checkpoint["state_dict"])


def check_texts(lines: object) -> None:
    """Refuse what is no list of lines: of a text alone, each letter would be one."""
    is_list = isinstance(lines, Sequence) and not isinstance(lines, str | bytes)
    if not is_list or not all(isinstance(line, str) for line in cast(Sequence[object], lines)):
        raise UserError(f"lines must be a list of texts, got {short_repr(lines)}.")
