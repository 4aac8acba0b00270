"""Parity of bits, the smallest task of tracking a state."""

from dataclasses import dataclass

import numpy as np

from attention_zoo.tasks.data.diagnostics.base import QueryRows, StringDiagnostic
from attention_zoo.tasks.data.tokenizers import BOS, FIRST_ID


@dataclass(frozen=True, kw_only=True)
class Parity(StringDiagnostic):
    """Draws `1 0 1 1 …`: a bit is a query for whether the ones so far are even or odd in number.

    Each bit from that with the number `min_length` on is a query, so a sequence asks about strings
    of all lengths up to its own. At another length only the last bit is one.

    Args:
        length: of the longest strings, in bits.
        min_length: of the shortest strings.
    """

    length: int = 40
    min_length: int = 3

    @property
    def symbols(self) -> list[str]:
        return ["0", "1", "even", "odd"]

    @property
    def chance_accuracy(self) -> float:
        return 1 / 2

    def draw_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        bits = generator.integers(2, size=(rows, self.length))
        inputs = np.concatenate([np.full((rows, 1), BOS), FIRST_ID + bits], axis=1)
        answers = FIRST_ID + 2 + bits.cumsum(axis=1) % 2
        positions = np.arange(self.min_length, self.length + 1)
        answers = answers[:, self.min_length - 1 :]
        return QueryRows(inputs, np.broadcast_to(positions, answers.shape), answers)
