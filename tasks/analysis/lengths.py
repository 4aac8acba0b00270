"""Length generalisation: one model, the same targets, at lengths that it was not trained at."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from rich.console import Console

from attention_zoo.errors import Unsupported, UserError
from attention_zoo.tasks.analysis.length_report import (
    PREFIX,
    length_table,
    loss_by_position_figure,
    print_lengths,
)
from attention_zoo.tasks.configuration.compatibility import DIAGNOSTICS
from attention_zoo.tasks.data.loader import ResumableLoader
from attention_zoo.tasks.data.base import PreparedData
from attention_zoo.tasks.training.language_modeling import LanguageModelingTask
from attention_zoo.tasks.training.loggers.loggers import log_image, log_table
from attention_zoo.tasks.training.results import relative_to_cwd
from attention_zoo.tasks.training.task import Task


def check_lengths(config: Mapping[str, Any]) -> None:
    """Refuse `lengths` and `stride` that make no sense, or that the task or the trainer cannot do.

    Raises:
        UserError, Unsupported: with the rule, the value and the remedy.
    """
    lengths, stride = config["lengths"], config["stride"]
    whole = isinstance(lengths, list) and all(type(x) is int and x > 0 for x in lengths)
    if not whole or len({*lengths}) < len(lengths):
        raise UserError(
            "lengths must be a list of whole numbers of at least 1, each of them once, such as "
            f"lengths=[64,128], got {lengths!r}."
        )
    if not lengths:
        if stride is not None:
            raise UserError(f"stride={stride} needs lengths to slide at: lengths=[64,128].")
        return
    if config["task"]["name"] != "language_modeling":
        raise Unsupported(
            f"lengths={lengths} needs task=language_modeling, got {config['task']['name']}: a "
            "translation is as long as its sentence, and not to be had at another length."
        )
    if stride is not None:
        if config["data"]["_target_"] == DIAGNOSTICS:
            raise Unsupported(f"stride={stride} needs text: the windows of diagnostics stand.")
        if type(stride) is not int or not 1 <= stride <= min(lengths):
            raise UserError(
                "stride must be a whole number from 1 to the shortest of the lengths, got "
                f"stride={stride!r} and lengths={lengths}."
            )
    trainer = config["trainer"]
    limit = trainer.get("limit_test_batches")
    # 1.0 is all batches, and 1 is one of them.
    limited = limit is not None and (type(limit) is not float or limit != 1)
    for option, set_ in (
        ("limit_test_batches", limited),
        ("fast_dev_run", trainer.get("fast_dev_run")),
    ):
        if set_:
            raise UserError(
                "lengths must be scored on the whole split, so that all have the same targets, "
                f"got trainer.{option}={trainer[option]}; leave it out, or give lengths=[]."
            )


def trained_at(data: Mapping[str, Any]) -> int | None:
    """The length that data are trained at, as `lengths` counts; None where they do not tell."""
    return (
        data["source"]["length"] if data["_target_"] == DIAGNOSTICS else data.get("context_length")
    )


class AtLengths(LightningDataModule):
    """A split of the data, as test sets at several lengths.

    What cannot be had, or is longer than the model can take, is in `refused`, with its reason.

    Args:
        config: of which `lengths` and `stride` say what to score.
        data: prepared and set up.
        split: of the data, valid or test.
        limit: the longest sequence that the model takes, in tokens, if it has a limit.
        trained_at: the length that the model was trained at, if that is known.

    Raises:
        UserError: if all lengths are refused.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        data: PreparedData,
        *,
        split: str,
        limit: int | None,
        trained_at: int | None,
    ) -> None:
        super().__init__()
        self.data, self.split, self.trained_at = data, split, trained_at
        self.asks = config["data"]["_target_"] == DIAGNOSTICS
        self.lengths: list[int] = []
        self.refused: dict[int, str] = {}
        for length in sorted(config["lengths"]):
            try:
                tokens = data.tokens_at_length(length, split)
            except UserError as error:
                self.refused[length] = str(error)
                continue
            if limit is not None and tokens > limit:
                self.refused[length] = (
                    f"the model takes at most {limit} tokens, got sequences of {tokens}."
                )
            else:
                self.lengths.append(length)
        if not self.lengths:
            reasons = " ".join(f"{length}: {why}" for length, why in self.refused.items())
            raise Unsupported(f"None of the lengths can be scored. {reasons}")
        # Twice the cost of windows that do not overlap, for half a window of context at least.
        self.strides = {x: config["stride"] or max(1, x // 2) for x in self.lengths}
        ways = ("",) if self.asks else ("", " sliding")
        self.test_names = [f"{PREFIX[split]}@{x}{way}" for x in self.lengths for way in ways]

    def test_dataloader(self) -> list[ResumableLoader]:
        assert self.trainer is not None
        rank = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        loaders = [
            loader
            for length in self.lengths
            for loader in self.data.loaders_at_length(
                length, self.split, stride=self.strides[length], **rank
            ).values()
        ]
        assert len(loaders) == len(self.test_names)
        return loaders


def score_lengths(trainer: Trainer, task: Task, tests: AtLengths, **options: Any) -> dict[str, Any]:
    """Score a model at all lengths. The trainer has logged the metrics, `test/loss@128` and so on.

    Args:
        options: of `Trainer.test`.

    Returns:
        What `results.json` says beside the metrics: the training length, the split, which lengths
        were scored, and why others were refused; of text also the number of targets, which is the
        same at every length, the strides, and the mean loss at each place of a window, from 0.
    """
    trainer.test(task, datamodule=tests, verbose=False, **options)
    told: dict[str, Any] = {
        "trained_at": tests.trained_at,
        "split": tests.split,
        "scored": tests.lengths,
        "refused": {str(length): reason for length, reason in tests.refused.items()},
    }
    if tests.asks:
        return told
    assert isinstance(task, LanguageModelingTask)
    targets = {int(counts.sum()) for _, counts in task.by_place.values()}
    assert len(targets) == 1, f"all lengths have the same targets, got {targets}"
    told["targets"] = targets.pop()
    told["stride"] = {str(length): stride for length, stride in tests.strides.items()}
    told["loss_by_position"] = {
        # Null where nothing is predicted: no document ends, or begins, there in every window.
        str(length): [None if math.isnan(x) else round(x, 5) for x in (sums / counts).tolist()]
        for length, (sums, counts) in task.by_place.items()
    }
    return told


def report_lengths(
    console: Console,
    results: Mapping[str, Any],
    folder: Path,
    loggers: list[Logger],
    step: int,
) -> dict[str, Path]:
    """Print the table of lengths, put the picture into the folder, and both into the loggers.

    Returns:
        Paths by what they are.
    """
    print_lengths(console, results)
    log_table(loggers, "lengths", *length_table(results), step)
    if results["lengths"].get("loss_by_position") is None:
        return {}
    picture = relative_to_cwd(folder) / "loss_by_position.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    loss_by_position_figure(results).savefig(picture)
    log_image(loggers, "loss_by_position", picture, step)
    return {"positions": picture}
