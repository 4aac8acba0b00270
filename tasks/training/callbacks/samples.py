"""What the model answers to fixed probe lines."""

from typing import Any

from lightning.pytorch import Trainer

from attention_zoo.tasks.training.callbacks.periodic_inspection import InspectionCallback


class Samples(InspectionCallback):
    """Logs a table of translations, or continuations of prompts, as `samples`.

    Rank zero answers, at validations and at the end of training; `rows` holds the newest answers,
    in the order of `columns`.

    Args:
        every_n_validations: answer at every n-th validation; the end of training always does.
        probes: number of the data module's probe lines to answer, from its first.

    Raises:
        UserError: `every_n_validations` is below 1.
    """

    label = "samples"

    def __init__(self, *, every_n_validations: int = 1, probes: int = 8) -> None:
        super().__init__(every_n_validations=every_n_validations)
        self.probes = probes
        self.columns: list[str] = []
        self.rows: list[list[str]] = []

    def look(self, trainer: Trainer, task: Any) -> None:
        """Answer all probes, into `rows` and every logger."""
        from attention_zoo.tasks.training.loggers.loggers import log_table

        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        probes = data.probes[: self.probes]
        answers = task.respond(probes)
        given, written = task.words
        if data.probe_references is None:
            self.columns = [given, written]
            self.rows = [list(row) for row in zip(probes, answers, strict=True)]
        else:
            references = data.probe_references[: self.probes]
            self.columns = [given, "reference", written]
            self.rows = [list(row) for row in zip(probes, references, answers, strict=True)]
        log_table(trainer.loggers, "samples", self.columns, self.rows, trainer.global_step)
