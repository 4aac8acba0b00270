"""Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927)."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.diagnostics.base import FIRST, Diagnostic, QueryRows, distinct
from attention_zoo.tasks.data.tokenizers import BOS


@dataclass(frozen=True, kw_only=True)
class Recall(Diagnostic):
    """`k12 v7 k3 v9 … k3 … k12`: every key comes again, and asks for the value it came with.

    First all pairs, the keys different from each other, and so the values. Behind them every
    second place may hold a key; the g-th of these does with a weight of g^(power - 1). The other
    places are filled with random symbols. At another length there are as many pairs to a token.

    Unlike the authors' code, a sequence begins with bos, which counts, and what it is filled with
    is none of its keys, so that every question has one answer.

    Args:
        length: of a sequence, in tokens.
        pairs: keys with values.
        vocabulary: symbols; half of them keys, half values.
        power: 1 spreads the questions evenly, less brings them nearer to the pairs.
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
        half = range(1, self.vocabulary // 2 + 1)
        return [*(f"k{number}" for number in half), *(f"v{number}" for number in half)]

    def at(self, length: int) -> Self:
        return replace(self, length=length, pairs=self.pairs * length // self.length)

    def draw(self, generator: np.random.Generator, rows: int) -> QueryRows:
        half, context = self.vocabulary // 2, 1 + 2 * self.pairs
        keys = distinct(generator, rows=rows, count=self.pairs, choices=half)
        values = half + distinct(generator, rows=rows, count=self.pairs, choices=half)

        inputs = generator.integers(self.vocabulary - self.pairs, size=(rows, self.length))
        for key in np.sort(keys, axis=1).T:  # leaves a gap in the numbers for each key
            inputs += inputs >= key[:, None]
        inputs[:, 1:context:2], inputs[:, 2:context:2] = keys, values

        slots = (self.length - context + 1) // 2
        weights = np.arange(1, slots + 1) ** (self.power - 1.0)
        # The least of exponential times: a draw without replacement by these weights.
        times = generator.exponential(size=(rows, slots)) / weights
        places = context + 2 * np.argsort(times, axis=1)[:, : self.pairs]
        np.put_along_axis(inputs, places, keys, axis=1)
        inputs += FIRST
        inputs[:, 0] = BOS
        return QueryRows(inputs, places, FIRST + values)
