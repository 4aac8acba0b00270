"""Copying a string (Jelassi et al. 2024, arXiv 2402.01032)."""

from dataclasses import dataclass

import numpy as np

from attention_zoo.errors import check_positive
from attention_zoo.tasks.data.batches import IGNORE_INDEX
from attention_zoo.tasks.data.diagnostics.base import QueryRows, StringDiagnostic
from attention_zoo.tasks.data.tokenizers import BOS, EOS, FIRST_ID, PAD


@dataclass(frozen=True, kw_only=True)
class Copy(StringDiagnostic):
    """Draws `5 1 7 | 5 1 7`: a random string, a separator, the string again, eos.

    Every token from the separator on is a query for the next one. At another length all strings
    have that length.

    Unlike in the authors' code, a sequence is one string; theirs are filled up with further ones.

    Args:
        length: of the longest strings, in symbols.
        min_length: of the shortest strings; all lengths between are equally frequent.
        vocabulary: symbols, without the separator.
    """

    length: int = 32
    min_length: int = 16
    vocabulary: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(vocabulary=self.vocabulary)

    @property
    def symbols(self) -> list[str]:
        return [*map(str, range(1, self.vocabulary + 1)), "|"]

    @property
    def chance_accuracy(self) -> float:
        eos = 2 / (self.min_length + self.length + 2)  # one answer in 1 + the mean length
        return max(eos, (1 - eos) / self.vocabulary)

    def transform_strings(self, strings: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Return the answers to strings, both [n length]; the first `lengths` [n] symbols count."""
        return strings

    def draw_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        lengths = generator.integers(self.min_length, self.length, size=rows, endpoint=True)
        strings = FIRST_ID + generator.integers(self.vocabulary, size=(rows, self.length))
        row, column = np.nonzero(np.arange(self.length) < lengths[:, None])
        separator = 1 + lengths

        answers = np.full((rows, self.length + 1), IGNORE_INDEX)
        answers[row, column] = self.transform_strings(strings, lengths)[row, column]
        inputs = np.full((rows, 2 * self.length + 2), PAD)
        inputs[:, 0] = BOS
        inputs[row, 1 + column] = strings[row, column]
        inputs[row, separator[row] + 1 + column] = answers[row, column]
        all_rows = np.arange(rows)
        inputs[all_rows, separator] = FIRST_ID + self.vocabulary
        answers[all_rows, lengths] = EOS
        return QueryRows(inputs, separator[:, None] + np.arange(self.length + 1), answers)
