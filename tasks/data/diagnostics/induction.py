"""Induction heads (Olsson et al. 2022, arXiv 2209.11895)."""

from dataclasses import dataclass

import numpy as np

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.batches import IGNORE_INDEX
from attention_zoo.tasks.data.diagnostics.base import (
    FIRST,
    Diagnostic,
    QueryRows,
    distinct,
    numbered,
)
from attention_zoo.tasks.data.tokenizers import BOS


@dataclass(frozen=True, kw_only=True)
class Induction(Diagnostic):
    """`4 9 2 6 4 9 2 6 4 …`: a token that was seen before is followed by what followed it.

    A block of different random symbols is repeated until the sequence is full. From its second
    time on every token asks for the next one. Blocks are between a quarter and half of the
    sequence long, all lengths as frequent, so that no fixed distance gives the answer.

    Args:
        length: of a sequence, in tokens, bos included.
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
        return numbered(self.vocabulary)

    def draw(self, generator: np.random.Generator, rows: int) -> QueryRows:
        longest, min_length = self.length // 2, self.length // 4
        blocks = distinct(generator, rows=rows, count=longest, choices=self.vocabulary)
        periods = generator.integers(min_length, longest, size=(rows, 1), endpoint=True)
        # One more than goes in: the last answer.
        tokens = FIRST + np.take_along_axis(blocks, np.arange(self.length) % periods, axis=1)
        inputs = np.concatenate([np.full((rows, 1), BOS), tokens[:, :-1]], axis=1)
        places = np.arange(1 + min_length, self.length)
        answers = np.where(places > periods, tokens[:, places], IGNORE_INDEX)
        return QueryRows(inputs, np.broadcast_to(places, answers.shape), answers)
