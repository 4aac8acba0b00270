"""Modular arithmetic with brackets (Deletang et al. 2022, arXiv 2207.02098)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from attention_zoo.tasks.data.diagnostics.base import ModularDiagnostic, QueryRows
from attention_zoo.tasks.data.diagnostics.prompts import prompt_rows
from attention_zoo.tasks.data.tokenizers import FIRST_ID


@dataclass(frozen=True, kw_only=True)
class ModularArithmeticBrackets(ModularDiagnostic):
    """Draws `( ( 2 - 4 ) + ( - 3 ) ) =`: the value modulo `modulus` is the answer.

    An expression of up to 4 tokens is a number, with a minus, brackets or both. A longer one puts +
    or - between two expressions, and brackets around them; every division of its length is equally
    frequent. Source: the generator of Deletang et al., with + and - as there and in Grazzi et al.
    2024 (arXiv 2411.12537). At another length all expressions have that length.

    Args:
        length: of the longest expressions, in tokens without the =.
        min_length: of the shortest ones. All lengths between are equally frequent.
        modulus: of the arithmetic.
    """

    length: int = 37
    min_length: int = 2
    modulus: int = 5

    @property
    def symbols(self) -> list[str]:
        return [*map(str, range(self.modulus)), "+", "-", "(", ")", "="]

    @property
    def chance_accuracy(self) -> float:
        """Return 1 / `modulus`: sums and differences of uniform numbers are uniform."""
        return 1 / self.modulus

    def draw_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        ids = {symbol: FIRST_ID + index for index, symbol in enumerate(self.symbols)}
        lengths = generator.integers(self.min_length, self.length, size=rows, endpoint=True)
        prompts, answers = [], []
        for length in lengths.tolist():
            # An expression of n tokens takes at most n draws.
            symbols, value = self._expression(length, iter(generator.random(length).tolist()))
            prompts.append([ids[symbol] for symbol in (*symbols, "=")])
            answers.append([ids[str(value % self.modulus)]])
        return prompt_rows(prompts, answers, prompt_width=self.length + 1, answer_width=1)

    def _expression(self, length: int, draws: Iterator[float]) -> tuple[list[str], int]:
        """Return an expression and its value; `draws` are uniform in [0, 1)."""
        if length <= 4:
            number = int(next(draws) * self.modulus)
            negative, brackets = length % 2 == 0, length > 2
            symbols = ["-", str(number)] if negative else [str(number)]
            return ["(", *symbols, ")"] if brackets else symbols, -number if negative else number
        left_length = 1 + int(next(draws) * (length - 4))
        left, left_value = self._expression(left_length, draws)
        right, right_value = self._expression(length - 3 - left_length, draws)
        if next(draws) < 0.5:
            return ["(", *left, "+", *right, ")"], left_value + right_value
        return ["(", *left, "-", *right, ")"], left_value - right_value
