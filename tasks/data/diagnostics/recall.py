"""Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from attention_zoo.errors import UserError, short_repr
from attention_zoo.tasks.data.batches import IGNORE_INDEX
from attention_zoo.tasks.data.diagnostics.base import Diagnostic, QueryRows, draw_distinct
from attention_zoo.tasks.data.tokenizers import BOS, FIRST_ID, PAD


@dataclass(frozen=True, kw_only=True)
class Recall(Diagnostic):
    """Draws `k12 v7 k3 v9 … k3 … k12`: every key comes again, as a query for its value.

    A sequence starts with pairs of keys and values; no two keys are equal, and no two values.
    After the pairs, every second position may hold a query; the g-th of these positions is drawn
    with a weight of g^(power - 1). Random symbols or blanks fill the other positions. At another
    length the number of pairs grows with the length, and all sequences have that length.

    Unlike in the authors' code, a sequence starts with bos, which counts, and the random symbols
    are none of its keys, so that every query has one answer. The sequences of a mixture share
    batches and are padded on the right; the authors' batches have one length and number of pairs.

    Args:
        length: of a sequence, in tokens; with a `mixture`, of the longest ones.
        pairs: of keys and values in a sequence of that length.
        mixture: further sequences, as (length, pairs, weight): of these there are `weight` times as
            many as of those with `length` and `pairs`.
        vocabulary: symbols, without the blank; half of them are keys, half are values.
        power: 1 spreads the queries evenly, less brings them nearer to the pairs.
        random_filler: fill with random symbols; otherwise with a blank.
    """

    length: int = 64
    pairs: int = 4
    mixture: Sequence[Any] = field(default_factory=list)
    vocabulary: int = 8192
    power: float = 0.01
    random_filler: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_mixture()
        for length, pairs, _ in self.components:
            if not 1 <= pairs <= length // 4:
                raise UserError(
                    "there must be at least 1 pair, and room for 4 tokens a pair, got "
                    f"pairs={pairs} and length={length}."
                )
        pairs = max(pairs for _, pairs, _ in self.components)
        if self.vocabulary % 2 or self.vocabulary < 2 * pairs:
            raise UserError(
                "vocabulary must be even and have a key and a value for each pair, got "
                f"vocabulary={self.vocabulary} and pairs={pairs}."
            )

    def _check_mixture(self) -> None:
        for component in self.mixture:
            match component:
                case [int(length), int(_), int(weight) | float(weight)] if weight > 0:
                    is_right = length <= self.length
                case _:
                    is_right = False
            if not is_right:
                raise UserError(
                    "mixture must list [length, pairs, weight], with lengths of at most "
                    f"length={self.length} and weights above 0, got {short_repr(component)}."
                )

    @property
    def components(self) -> list[tuple[int, int, float]]:
        """Return the length, the pairs and the weight of each kind of sequence."""
        return [(self.length, self.pairs, 1.0), *self.mixture]

    @property
    def symbols(self) -> list[str]:
        numbers = range(1, self.vocabulary // 2 + 1)
        blank = [] if self.random_filler else ["."]
        return [
            *(f"k{number}" for number in numbers),
            *(f"v{number}" for number in numbers),
            *blank,
        ]

    @property
    def chance_accuracy(self) -> float:
        return 2 / self.vocabulary

    def with_length(self, length: int) -> Self:
        return replace(self, length=length, pairs=self.pairs * length // self.length, mixture=[])

    def draw_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        if not self.mixture:
            return self._draw_component(generator, rows, length=self.length, pairs=self.pairs)
        weights = np.array([weight for _, _, weight in self.components])
        counts = generator.multinomial(rows, weights / weights.sum())
        most = max(pairs for _, pairs, _ in self.components)
        inputs = np.full((rows, self.length), PAD)
        target_positions = np.zeros((rows, most), dtype=np.int64)
        answers = np.full((rows, most), IGNORE_INDEX)
        order, start = generator.permutation(rows), 0
        for (length, pairs, _), count in zip(self.components, counts, strict=True):
            drawn = self._draw_component(generator, count, length=length, pairs=pairs)
            chosen = order[start : start + count]
            inputs[chosen, :length] = drawn.inputs
            target_positions[chosen, :pairs] = drawn.target_positions
            answers[chosen, :pairs] = drawn.answers
            start += count
        return QueryRows(inputs, target_positions, answers)

    def _draw_component(
        self, generator: np.random.Generator, rows: int, *, length: int, pairs: int
    ) -> QueryRows:
        """Draw sequences of one length with one number of pairs."""
        half, pairs_end = self.vocabulary // 2, 1 + 2 * pairs
        keys = draw_distinct(generator, rows=rows, count=pairs, choices=half)
        values = half + draw_distinct(generator, rows=rows, count=pairs, choices=half)

        if self.random_filler:
            inputs = generator.integers(self.vocabulary - pairs, size=(rows, length))
            # The n-th symbol that is no key is n + the number of keys k_j with k_j - j <= n.
            row = np.arange(rows)[:, None]
            steps = row * self.vocabulary + np.sort(keys, axis=1) - np.arange(pairs)
            skipped = np.searchsorted(steps.ravel(), row * self.vocabulary + inputs, side="right")
            inputs += skipped - row * pairs
        else:
            inputs = np.full((rows, length), self.vocabulary)
        inputs[:, 1:pairs_end:2], inputs[:, 2:pairs_end:2] = keys, values

        slots = (length - pairs_end + 1) // 2
        weights = np.arange(1, slots + 1) ** (self.power - 1.0)
        # The smallest of exponential times: a draw without replacement by these weights.
        times = generator.exponential(size=(rows, slots)) / weights
        query_positions = pairs_end + 2 * np.argsort(times, axis=1)[:, :pairs]
        np.put_along_axis(inputs, query_positions, keys, axis=1)
        inputs += FIRST_ID
        inputs[:, 0] = BOS
        return QueryRows(inputs, query_positions, FIRST_ID + values)
