"""Mano, mental arithmetic in prefix notation (Allen-Zhu 2025, arXiv 2512.17351)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.diagnostics.base import ModularDiagnostic, QueryRows
from attention_zoo.tasks.data.diagnostics.prompts import prompt_rows
from attention_zoo.tasks.data.tokenizers import FIRST_ID

OPERATORS = ("+", "-", "*")


@dataclass(frozen=True, kw_only=True)
class Mano(ModularDiagnostic):
    """Draws `n2 * - 3 8 21 =`: the value of a prefix expression modulo `modulus` is the answer.

    The first token tells the number of operators. Of the others, the first operand of an operator
    has any number, equally often. At another length all expressions have that many operators.

    Unlike in the authors' code, each token has one form, not two of the same meaning; and only the
    value is predicted.

    Args:
        length: of the longest expressions, in operators.
        min_length: of the shortest ones. All lengths between are equally frequent.
        modulus: of the arithmetic.
    """

    length: int = 10
    min_length: int = 1
    modulus: int = 23

    @property
    def symbols(self) -> list[str]:
        lengths = [f"n{count}" for count in range(1, self.length + 1)]
        return [*map(str, range(self.modulus)), *OPERATORS, "=", *lengths]

    @property
    def chance_accuracy(self) -> float:
        """Return the share of the most frequent value, by its exact distribution at each length."""
        numbers = np.arange(self.modulus)
        tables = [np.add.outer, np.subtract.outer, np.multiply.outer]
        values = np.concatenate(
            [(table(numbers, numbers) % self.modulus).ravel() for table in tables]
        )
        shares = [np.full(self.modulus, 1 / self.modulus)]
        for length in range(1, self.length + 1):
            pairs = np.mean(
                [np.outer(shares[left], shares[length - 1 - left]) for left in range(length)],
                axis=0,
            )
            shares.append(np.bincount(values, np.tile(pairs.ravel(), 3)) / 3)
        return float(np.mean(shares[self.min_length :], axis=0).max())

    def with_length(self, length: int) -> Self:
        if length > self.length:
            raise UserError(
                "Mano names the number of operators by a token, so lengths must be at most that of "
                f"training, data.source.length={self.length}, got {length}."
            )
        return super().with_length(length)

    def draw_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        ids = {symbol: FIRST_ID + index for index, symbol in enumerate(self.symbols)}
        lengths = generator.integers(self.min_length, self.length, size=rows, endpoint=True)
        prompts, answers = [], []
        for length in lengths.tolist():
            # A draw for each number, and two for each operator.
            draws = iter(generator.random(3 * length + 1).tolist())
            symbols, value = self._expression(length, draws)
            prompts.append([ids[symbol] for symbol in (f"n{length}", *symbols, "=")])
            answers.append([ids[str(value)]])
        return prompt_rows(prompts, answers, prompt_width=2 * self.length + 3, answer_width=1)

    def _expression(self, length: int, draws: Iterator[float]) -> tuple[list[str], int]:
        """Return an expression of `length` operators and its value."""
        if length == 0:
            number = int(next(draws) * self.modulus)
            return [str(number)], number
        operator = OPERATORS[int(next(draws) * len(OPERATORS))]
        left_length = int(next(draws) * length)
        left, left_value = self._expression(left_length, draws)
        right, right_value = self._expression(length - 1 - left_length, draws)
        results = (left_value + right_value, left_value - right_value, left_value * right_value)
        value = results[OPERATORS.index(operator)] % self.modulus
        return [operator, *left, *right], value
