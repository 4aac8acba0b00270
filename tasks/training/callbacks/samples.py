"""What the model generates for fixed probe lines."""

from typing import Any

from lightning.pytorch import Trainer

from attention_zoo.errors import check_positive
from attention_zoo.tasks.training.callbacks.periodic_inspection import InspectionCallback
from attention_zoo.tasks.training.loggers.loggers import log_table


class Samples(InspectionCallback):
    """Log a table of translations, or of continuations of prompts, as `samples`.

    Rank zero generates, at validations and at the end of training. `rows` holds the newest samples,
    in the order of `columns`.

    Args:
        every_n_validations: generate at every n-th validation; the end of training always does.
        probes: number of the data module's probe lines to generate from, from its first.
    """

    label = "samples"

    def __init__(self, *, every_n_validations: int = 1, probes: int = 8) -> None:
        super().__init__(every_n_validations=every_n_validations)
        check_positive(probes=probes)
        self.probes = probes
        self.columns: list[str] = []
        self.rows: list[list[str]] = []

    def inspect(self, trainer: Trainer, task: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        input_column, output_column = task.sample_columns
        table = {input_column: data.probes[: self.probes]}
        if data.probe_references is not None:
            table["reference"] = data.probe_references[: self.probes]
        table[output_column] = task.generate(table[input_column])
        self.columns = list(table)
        self.rows = [list(row) for row in zip(*table.values(), strict=True)]
        log_table(trainer.loggers, "samples", self.columns, self.rows, trainer.global_step)
