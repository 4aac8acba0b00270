"""Copying a string (Jelassi et al. 2024, arXiv 2402.01032)."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.batches import IGNORE_INDEX
from attention_zoo.tasks.data.diagnostics.base import FIRST, Diagnostic, QueryRows, numbered
from attention_zoo.tasks.data.tokenizers import BOS, EOS, PAD


@dataclass(frozen=True, kw_only=True)
class Copy(Diagnostic):
    """`5 1 7 | 5 1 7`: a random string comes again behind the separator, and then eos.

    Every token from the separator on asks for the next one. At another length all strings are as
    long as that.

    Args:
        length: of the longest strings, in symbols.
        min_length: the shortest strings; all lengths between are as frequent.
        vocabulary: symbols beside the separator.
    """

    length: int = 32
    min_length: int = 16
    vocabulary: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.min_length <= self.length:
            raise UserError(
                "min_length must be at least 1 and at most length, got "
                f"min_length={self.min_length} and length={self.length}."
            )
        if self.vocabulary < 1:
            raise UserError(f"vocabulary must be at least 1, got {self.vocabulary}.")

    @property
    def symbols(self) -> list[str]:
        return [*numbered(self.vocabulary), "|"]

    def at(self, length: int) -> Self:
        return replace(self, length=length, min_length=length)

    def rewritten(self, strings: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The answers [n length] to strings [n length], of which the first `lengths` [n] count."""
        return strings

    def draw(self, generator: np.random.Generator, rows: int) -> QueryRows:
        lengths = generator.integers(self.min_length, self.length, size=rows, endpoint=True)
        strings = FIRST + generator.integers(self.vocabulary, size=(rows, self.length))
        row, place = np.nonzero(np.arange(self.length) < lengths[:, None])
        separator = 1 + lengths

        answers = np.full((rows, self.length + 1), IGNORE_INDEX)
        answers[row, place] = self.rewritten(strings, lengths)[row, place]
        inputs = np.full((rows, 2 * self.length + 2), PAD)
        inputs[:, 0] = BOS
        inputs[row, 1 + place] = strings[row, place]
        inputs[row, separator[row] + 1 + place] = answers[row, place]
        every = np.arange(rows)
        inputs[every, separator] = FIRST + self.vocabulary
        answers[every, lengths] = EOS
        return QueryRows(inputs, separator[:, None] + np.arange(self.length + 1), answers)
