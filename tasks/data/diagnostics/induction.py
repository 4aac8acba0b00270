"""Induction heads (Olsson et al. 2022, arXiv 2209.11895)."""

from dataclasses import dataclass

import numpy as np

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.batches import IGNORE_INDEX
from attention_zoo.tasks.data.diagnostics.base import Diagnostic, QueryRows, draw_distinct
from attention_zoo.tasks.data.tokenizers import BOS, FIRST_ID


@dataclass(frozen=True, kw_only=True)
class Induction(Diagnostic):
    """Draws `4 9 2 6 4 9 2 6 4 …`: a block of different random symbols, again and again.

    From the first repetition on, every token is a query for the next one. A block is between a
    quarter and half of the sequence long. All lengths are equally frequent, so no fixed distance
    gives the answer.

    Args:
        length: of a sequence, in tokens, with bos.
        vocabulary: symbols.
    """

    length: int = 64
    vocabulary: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 8 or self.vocabulary < self.length // 2:
            raise UserError(
                "length must be at least 8, and vocabulary at least half of it, got "
                f"length={self.length} and vocabulary={self.vocabulary}."
            )

    @property
    def symbols(self) -> list[str]:
        return [*map(str, range(1, self.vocabulary + 1))]

    @property
    def chance_accuracy(self) -> float:
        return 1 / self.vocabulary

    def draw_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        longest, shortest = self.length // 2, self.length // 4
        blocks = draw_distinct(generator, rows=rows, count=longest, choices=self.vocabulary)
        periods = generator.integers(shortest, longest, size=(rows, 1), endpoint=True)
        # One token more than the input has: the last answer.
        tokens = FIRST_ID + np.take_along_axis(blocks, np.arange(self.length) % periods, axis=1)
        inputs = np.concatenate([np.full((rows, 1), BOS), tokens[:, :-1]], axis=1)
        positions = np.arange(1 + shortest, self.length)
        answers = np.where(positions > periods, tokens[:, positions], IGNORE_INDEX)
        return QueryRows(inputs, np.broadcast_to(positions, answers.shape), answers)
