"""Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927)."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.diagnostics.base import Diagnostic, QueryRows, draw_distinct
from attention_zoo.tasks.data.tokenizers import BOS, FIRST_ID


@dataclass(frozen=True, kw_only=True)
class Recall(Diagnostic):
    """Draws `k12 v7 k3 v9 … k3 … k12`: every key comes again, as a query for its value.

    A sequence starts with pairs of keys and values; no two keys are equal, and no two values.
    After the pairs, every second position may hold a query; the g-th of these positions is drawn
    with a weight of g^(power - 1). Random symbols fill the other positions. At another length the
    number of pairs grows with the length.

    Unlike in the authors' code, a sequence starts with bos, which counts, and the random symbols
    are none of its keys, so that every query has one answer.

    Args:
        length: of a sequence, in tokens.
        pairs: of keys and values.
        vocabulary: symbols; half of them are keys, half are values.
        power: 1 spreads the queries evenly, less brings them nearer to the pairs.
    """

    length: int = 64
    pairs: int = 4
    vocabulary: int = 8192
    power: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.pairs <= self.length // 4:
            raise UserError(
                "there must be at least 1 pair, and room for 4 tokens a pair, got "
                f"pairs={self.pairs} and length={self.length}."
            )
        if self.vocabulary % 2 or self.vocabulary < 2 * self.pairs:
            raise UserError(
                "vocabulary must be even and have a key and a value for each pair, got "
                f"vocabulary={self.vocabulary} and pairs={self.pairs}."
            )

    @property
    def symbols(self) -> list[str]:
        numbers = range(1, self.vocabulary // 2 + 1)
        return [*(f"k{number}" for number in numbers), *(f"v{number}" for number in numbers)]

    def with_length(self, length: int) -> Self:
        return replace(self, length=length, pairs=self.pairs * length // self.length)

    def draw_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        half, pairs_end = self.vocabulary // 2, 1 + 2 * self.pairs
        keys = draw_distinct(generator, rows=rows, count=self.pairs, choices=half)
        values = half + draw_distinct(generator, rows=rows, count=self.pairs, choices=half)

        inputs = generator.integers(self.vocabulary - self.pairs, size=(rows, self.length))
        for key in np.sort(keys, axis=1).T:  # skips the number of each key
            inputs += inputs >= key[:, None]
        inputs[:, 1:pairs_end:2], inputs[:, 2:pairs_end:2] = keys, values

        slots = (self.length - pairs_end + 1) // 2
        weights = np.arange(1, slots + 1) ** (self.power - 1.0)
        # The smallest of exponential times: a draw without replacement by these weights.
        times = generator.exponential(size=(rows, slots)) / weights
        query_positions = pairs_end + 2 * np.argsort(times, axis=1)[:, : self.pairs]
        np.put_along_axis(inputs, query_positions, keys, axis=1)
        inputs += FIRST_ID
        inputs[:, 0] = BOS
        return QueryRows(inputs, query_positions, FIRST_ID + values)
