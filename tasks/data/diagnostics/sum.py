"""The last digit of a sum (Kazemnejad et al. 2023, arXiv 2305.19466)."""

from dataclasses import dataclass

import numpy as np

from attention_zoo.tasks.data.diagnostics.base import QueryRows, StringDiagnostic
from attention_zoo.tasks.data.diagnostics.prompts import prompt_rows
from attention_zoo.tasks.data.tokenizers import FIRST_ID


@dataclass(frozen=True, kw_only=True)
class Sum(StringDiagnostic):
    """Draws `3 + 9 + 4 =`: the sum of the numbers modulo 10 is the answer.

    The numbers are from 1 to 9, all equally frequent. At another length all sums have that many.

    Args:
        length: of the longest sums, in numbers.
        min_length: of the shortest sums. All lengths between are equally frequent.
    """

    length: int = 20
    min_length: int = 2

    @property
    def symbols(self) -> list[str]:
        return [*"0123456789", "+", "="]

    @property
    def chance_accuracy(self) -> float:
        """Return the share of the most frequent answer, exactly.

        The sum of n numbers is a multiple of 10 with a probability of 1/10 + (-1/9)^n · 9/10; the
        other nine digits are equally likely.
        """
        lengths = np.arange(self.min_length, self.length + 1)
        zero = float(np.mean(0.1 + 0.9 * (-1 / 9.0) ** lengths))
        return max(zero, (1 - zero) / 9)

    def draw_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        lengths = generator.integers(self.min_length, self.length, size=rows, endpoint=True)
        numbers = generator.integers(1, 10, size=(rows, self.length))
        plus, equals = FIRST_ID + 10, FIRST_ID + 11
        tokens = np.full((rows, 2 * self.length), plus)
        tokens[:, ::2] = FIRST_ID + numbers
        prompts = [
            [*row[: 2 * length - 1], equals]
            for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)
        ]
        sums = numbers.cumsum(axis=1)[np.arange(rows), lengths - 1] % 10
        answers = (FIRST_ID + sums)[:, None].tolist()
        return prompt_rows(prompts, answers, prompt_width=2 * self.length, answer_width=1)
