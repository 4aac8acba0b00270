"""Addition of two numbers, digit by digit (Kazemnejad et al. 2023, arXiv 2305.19466)."""

from dataclasses import dataclass

import numpy as np

from attention_zoo.tasks.data.diagnostics.base import QueryRows, StringDiagnostic
from attention_zoo.tasks.data.diagnostics.prompts import most_frequent_share, prompt_rows
from attention_zoo.tasks.data.tokenizers import EOS, FIRST_ID


@dataclass(frozen=True, kw_only=True)
class Addition(StringDiagnostic):
    """Draws `4 7 + 9 5 = 1 4 2`: the digits of the sum and an eos are the answer.

    The numbers of digits of both numbers are independent, and all equally frequent. At another
    length both numbers have that many digits; the authors' test has some of which one is shorter.

    Args:
        length: of the longest numbers, in digits.
        min_length: of the shortest numbers.
    """

    length: int = 8
    min_length: int = 1

    @property
    def symbols(self) -> list[str]:
        return [*"0123456789", "+", "="]

    @property
    def chance_accuracy(self) -> float:
        """Return the share of the most frequent token of an answer, from 5,000 sequences."""
        return most_frequent_share(self.draw_rows(np.random.default_rng(0), 5000).answers)

    def draw_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        lengths = generator.integers(self.min_length, self.length, size=(rows, 2), endpoint=True)
        digits = generator.integers(10, size=(rows, 2, self.length))
        first = generator.integers(1, 10, size=(rows, 2))
        # The first digit is no 0, except of a number of one digit.
        digits[:, :, 0] = np.where(lengths > 1, first, digits[:, :, 0])
        prompts, answers = [], []
        for row, row_lengths in zip(digits.tolist(), lengths.tolist(), strict=True):
            one, two = (
                "".join(map(str, number[:length]))
                for number, length in zip(row, row_lengths, strict=True)
            )
            prompts.append(self._encode(f"{one}+{two}="))
            answers.append([*self._encode(str(int(one) + int(two))), EOS])
        return prompt_rows(
            prompts, answers, prompt_width=2 * self.length + 2, answer_width=self.length + 2
        )

    def _encode(self, text: str) -> list[int]:
        return [FIRST_ID + "0123456789+=".index(character) for character in text]
