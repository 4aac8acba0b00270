"""Memorization of MAD (Poli et al. 2024, arXiv 2403.17844)."""

from dataclasses import dataclass

import numpy as np

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.diagnostics.base import Diagnostic, QueryRows
from attention_zoo.tasks.data.diagnostics.mad_recall import with_bos
from attention_zoo.tasks.data.tokenizers import FIRST_ID


@dataclass(frozen=True, kw_only=True)
class MadMemorization(Diagnostic):
    """Draws `k3 ? k9 ? k3 ? …`: each mark is a query for the value of the key before it.

    The map from keys to values is the same in all sequences and splits, and no sequence shows a
    value: the weights have to hold the map. The seed decides the map too. Unlike in the authors'
    code, a sequence starts with bos.

    Args:
        length: of a sequence, in tokens.
        vocabulary: symbols, with the mark; half of the others are keys, half are values.
    """

    length: int = 32
    vocabulary: int = 256
    size: int = 256
    valid: int = 1280
    test: int = 1280

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 2 or self.length % 2:
            raise UserError(f"length must be even and at least 2, got {self.length}.")
        if self.vocabulary < 3:
            raise UserError(f"vocabulary must be at least 3, got {self.vocabulary}.")

    @property
    def keys(self) -> int:
        """Return the number of keys, each of which has a value of its own."""
        return (self.vocabulary - 1) // 2

    @property
    def symbols(self) -> list[str]:
        values = self.vocabulary - 1 - self.keys
        kinds = {"k": self.keys, "v": values}
        return [*(f"{kind}{i}" for kind, count in kinds.items() for i in range(1, count + 1)), "?"]

    @property
    def chance_accuracy(self) -> float:
        return 1 / self.keys

    def draw_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        values = np.random.default_rng([self.seed, self.vocabulary]).permutation(
            np.arange(self.keys, self.vocabulary - 1)
        )
        keys = generator.integers(self.keys, size=(rows, self.length // 2))
        tokens = np.full((rows, self.length), self.vocabulary - 1)
        tokens[:, ::2] = keys
        positions = np.arange(2, self.length + 1, 2)
        return QueryRows(
            with_bos(tokens), np.broadcast_to(positions, keys.shape), FIRST_ID + values[keys]
        )
