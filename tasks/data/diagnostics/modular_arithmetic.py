"""Modular arithmetic without brackets (Deletang et al. 2022, arXiv 2207.02098)."""

from dataclasses import dataclass

import numpy as np

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.diagnostics.base import ModularDiagnostic, QueryRows
from attention_zoo.tasks.data.diagnostics.prompts import prompt_rows
from attention_zoo.tasks.data.tokenizers import FIRST_ID

OPERATORS = ("+", "-", "*")


@dataclass(frozen=True, kw_only=True)
class ModularArithmetic(ModularDiagnostic):
    """Draws `3 + 2 * 4 =`: the value of the expression modulo `modulus` is the answer.

    Numbers from 0 to `modulus` - 1 and the operators +, - and * alternate, all equally frequent.
    Products come first. At another length all expressions have that length.

    Source: the task "modular arithmetic (simple)" of Deletang et al.; Grazzi et al. 2024 (arXiv
    2411.12537) train on all lengths up to 40, of which = and the answer are two.

    Args:
        length: of the longest expressions, in tokens without the =; odd.
        min_length: of the shortest ones; odd. All lengths between are equally frequent.
        modulus: of the arithmetic.
    """

    length: int = 37
    min_length: int = 1
    modulus: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length % 2 == 0 or self.min_length % 2 == 0:
            raise UserError(
                "length and min_length must be odd, as operators stand between numbers, got "
                f"length={self.length} and min_length={self.min_length}."
            )

    @property
    def symbols(self) -> list[str]:
        return [*map(str, range(self.modulus)), *OPERATORS, "="]

    @property
    def chance_accuracy(self) -> float:
        """Return the share of the most frequent value, which is 0: any zero makes a product zero.

        The distribution over the sum of the finished products and the product that is not finished
        is exact: one more operator and one more number at a time.
        """
        modulus = self.modulus
        total, product, number = np.ogrid[:modulus, :modulus, :modulus]
        joint = np.zeros((modulus, modulus))
        joint[0] = 1 / modulus
        shares = {1: joint.sum(axis=0)}
        for length in range(3, self.length + 1, 2):
            weights = np.broadcast_to(joint[:, :, None] / (3 * modulus), (modulus,) * 3)
            joint = np.zeros((modulus, modulus))
            np.add.at(joint, ((total + product) % modulus, number), weights)
            np.add.at(joint, ((total + product) % modulus, -number % modulus), weights)
            np.add.at(joint, (total, product * number % modulus), weights)
            values = (total + product)[:, :, 0] % modulus
            shares[length] = np.bincount(values.ravel(), joint.ravel())
        lengths = range(self.min_length, self.length + 1, 2)
        return float(np.mean([shares[length] for length in lengths], axis=0).max())

    def draw_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        most = (self.length + 1) // 2
        counts = generator.integers((self.min_length + 1) // 2, most, size=rows, endpoint=True)
        numbers = generator.integers(self.modulus, size=(rows, most))
        operators = generator.integers(len(OPERATORS), size=(rows, most - 1))
        tokens = np.empty((rows, 2 * most - 1), dtype=np.int64)
        tokens[:, ::2] = FIRST_ID + numbers
        tokens[:, 1::2] = FIRST_ID + self.modulus + operators
        equals = FIRST_ID + self.modulus + len(OPERATORS)
        prompts = [
            [*row[: 2 * n - 1], equals] for row, n in zip(tokens.tolist(), counts, strict=True)
        ]
        answers = FIRST_ID + self._values(numbers, operators)[np.arange(rows), counts - 1]
        return prompt_rows(
            prompts, answers[:, None].tolist(), prompt_width=self.length + 1, answer_width=1
        )

    def _values(self, numbers: np.ndarray, operators: np.ndarray) -> np.ndarray:
        """Return the value up to each number: [n m] from numbers [n m] and operators [n m - 1]."""
        total, product = np.zeros_like(numbers[:, 0]), numbers[:, 0]
        values = [product]
        for operator, number in zip(operators.T, numbers[:, 1:].T, strict=True):
            is_product = operator == OPERATORS.index("*")
            signed = np.where(operator == OPERATORS.index("-"), -number, number)
            total = np.where(is_product, total, (total + product) % self.modulus)
            product = np.where(is_product, product * number, signed) % self.modulus
            values.append((total + product) % self.modulus)
        return np.stack(values, axis=1)
