"""Length generalisation: one model on the same targets at lengths other than that of training."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from rich.console import Console

from attention_zoo.errors import Unsupported, UserError
from attention_zoo.tasks.analysis.length_report import (
    METRIC_PREFIX,
    draw_losses_by_position,
    length_table,
    print_lengths,
)
from attention_zoo.tasks.data.base import PreparedData, data_ranks
from attention_zoo.tasks.data.loader import ResumableLoader
from attention_zoo.tasks.run_folder import going_on_without, relative_to_cwd
from attention_zoo.tasks.task_spec import DIAGNOSTIC_DATA, LANGUAGE_MODELING, task_spec
from attention_zoo.tasks.training.language_modeling import LanguageModelingTask
from attention_zoo.tasks.training.loggers.loggers import log_image, log_table
from attention_zoo.tasks.training.task import Task


def check_lengths(config: Mapping[str, Any], *, max_length: int | None = None) -> None:
    """Refuse `lengths` and `stride` that are invalid, or that do not fit the task or the trainer.

    `max_length` is that of the model: one of the lengths at least must not exceed it.

    Raises:
        UserError, Unsupported: with the rule, the value and the remedy.
    """
    lengths, stride, trainer = config["lengths"], config["stride"], config["trainer"]
    whole = isinstance(lengths, list) and all(type(x) is int and x > 0 for x in lengths)
    if not whole or len({*lengths}) < len(lengths):
        raise UserError(
            "lengths must be a list of different whole numbers of at least 1, such as "
            f"lengths=[64,128], got {lengths!r}."
        )
    if not lengths:
        if stride is not None:
            raise UserError(f"stride={stride} needs lengths, such as lengths=[64,128].")
        return
    if task_spec(config) != LANGUAGE_MODELING:
        raise Unsupported(
            f"lengths={lengths} needs task={LANGUAGE_MODELING.name}, got "
            f"{task_spec(config).name}: the length of a translation is that of its sentence."
        )
    if stride is not None:
        if config["data"]["_target_"] == DIAGNOSTIC_DATA:
            raise Unsupported(f"stride={stride} needs text: diagnostics have no sliding windows.")
        if type(stride) is not int or not 1 <= stride <= min(lengths):
            raise UserError(
                "stride must be a whole number from 1 to the shortest of the lengths, got "
                f"stride={stride!r} and lengths={lengths}."
            )
    if max_length is not None and min(lengths) > max_length:
        raise Unsupported(
            f"None of the lengths can be scored: the model takes at most {max_length} tokens, got "
            f"lengths={lengths}. Give shorter ones, or choose a position without a longest length."
        )
    # All batches are 1.0, and 1 is one of them.
    limits = {"limit_test_batches": ("None", "1.0"), "fast_dev_run": ("None", "False", "0")}
    for option, unlimited in limits.items():
        if str(trainer.get(option)) not in unlimited:
            raise UserError(
                "lengths need the whole split, so that all have the same targets, got "
                f"trainer.{option}={trainer[option]}; leave it out, or give lengths=[]."
            )


def training_length(data: Mapping[str, Any]) -> int | None:
    """Return the length of the training data, as `lengths` counts; None if it is not known."""
    if data["_target_"] == DIAGNOSTIC_DATA:
        return data["source"]["length"]
    return data.get("context_length")


class LengthDataModule(LightningDataModule):
    """A split of prepared data, valid or test, as test sets at several lengths.

    `refused` holds the lengths that the data do not have or that are longer than `max_length`, that
    of the model, with the reasons. `training_length` is None if it is not known.

    Raises:
        Unsupported: all lengths are refused.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        data: PreparedData,
        *,
        split: str,
        max_length: int | None,
        training_length: int | None,
    ) -> None:
        super().__init__()
        self.data, self.split, self.training_length = data, split, training_length
        self.is_diagnostic = config["data"]["_target_"] == DIAGNOSTIC_DATA
        self.lengths: list[int] = []
        self.refused: dict[int, str] = {}
        for length in sorted(config["lengths"]):
            try:
                tokens = data.tokens_at_length(length, split)
                if max_length is not None and tokens > max_length:
                    raise UserError(
                        f"the model takes at most {max_length} tokens, got sequences of {tokens}."
                    )
                self.lengths.append(length)
            except UserError as error:
                self.refused[length] = str(error)
        if not self.lengths:
            reasons = " ".join(f"{length}: {reason}" for length, reason in self.refused.items())
            raise Unsupported(f"None of the lengths can be scored. {reasons}")
        # Half a window costs twice as much as windows without overlap, for at least half a window
        # of context.
        self.strides = {x: config["stride"] or max(1, x // 2) for x in self.lengths}
        names = [f"{METRIC_PREFIX[split]}@{x}" for x in self.lengths]
        suffixes = ("",) if self.is_diagnostic else ("", " sliding")
        self.test_names = [f"{name}{suffix}" for name in names for suffix in suffixes]

    def test_dataloader(self) -> list[ResumableLoader]:
        assert self.trainer is not None
        ranks = data_ranks(self.trainer)
        loaders: list[ResumableLoader] = []
        for length, stride in self.strides.items():
            options = {"stride": stride, **ranks}
            loaders += self.data.loaders_at_length(length, self.split, **options).values()
        assert len(loaders) == len(self.test_names)
        return loaders


def score_lengths(
    trainer: Trainer, task: Task, tests: LengthDataModule, **options: Any
) -> dict[str, Any]:
    """Score a model at all lengths. The trainer logs the metrics: `test/loss@128` and so on.

    The `options` are further arguments of `Trainer.test`.

    Returns:
        The entry `lengths` of `results.json`: the training length, the split, the scored lengths,
        and the refused lengths with their reasons. For text also the number of targets, which is
        the same at every length, the strides, and the mean loss at each position of a window.
    """
    trainer.test(task, datamodule=tests, verbose=False, **options)
    entry: dict[str, Any] = {"trained_at": tests.training_length, "split": tests.split}
    entry["scored"] = tests.lengths
    entry["refused"] = {str(length): reason for length, reason in tests.refused.items()}
    if tests.is_diagnostic:
        return entry
    assert isinstance(task, LanguageModelingTask)
    targets = {int(counts.sum()) for _, counts in task.loss_by_position.values()}
    assert len(targets) == 1, f"all lengths have the same targets, got {targets}"
    # Ranks that divide the model count the same targets.
    entry["targets"] = targets.pop() * data_ranks(trainer)["world_size"] // trainer.world_size
    entry["stride"] = {str(length): stride for length, stride in tests.strides.items()}
    entry["loss_by_position"] = {
        # Null where no window has a target, as no document ends or begins there.
        str(length): [None if math.isnan(x) else round(x, 5) for x in (sums / counts).tolist()]
        for length, (sums, counts) in task.loss_by_position.items()
    }
    return entry


def report_lengths(
    console: Console, results: Mapping[str, Any], folder: Path, loggers: list[Logger], step: int
) -> dict[str, Path]:
    """Print the table of lengths, draw the losses of text, log both; return paths by name."""
    print_lengths(console, results)
    table = length_table(results)
    log_table(loggers, "lengths", table.columns, table.rows, step)
    if results["lengths"].get("loss_by_position") is None:
        return {}
    picture = relative_to_cwd(folder) / "loss_by_position.png"
    with going_on_without(picture):
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_losses_by_position(results).savefig(picture, dpi=150)
        log_image(loggers, "loss_by_position", picture, step)
        return {"positions": picture}
    return {}
