"""Selective copying of MAD (Poli et al. 2024, arXiv 2403.17844)."""

from dataclasses import dataclass

import numpy as np

from attention_zoo.errors import UserError, check_positive
from attention_zoo.tasks.data.diagnostics.base import Diagnostic, QueryRows
from attention_zoo.tasks.data.diagnostics.mad_recall import with_bos
from attention_zoo.tasks.data.tokenizers import FIRST_ID


@dataclass(frozen=True, kw_only=True)
class MadSelectiveCopy(Diagnostic):
    """Draws `. 4 . . 9 . 2 | . . .`: the blanks after the mark are queries for 4, 9 and 2.

    Each blank before the mark is in front of one of the symbols, all equally likely, so the last
    symbol is next to the mark. Unlike in the authors' code, a sequence starts with bos.

    Args:
        length: of a sequence, in tokens.
        vocabulary: symbols, with the blank and the mark.
        copied: symbols to copy.
    """

    length: int = 256
    vocabulary: int = 16
    copied: int = 16
    size: int = 12_800
    valid: int = 1280
    test: int = 1280

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(copied=self.copied)
        if self.vocabulary < 3:
            raise UserError(f"vocabulary must be at least 3, got {self.vocabulary}.")
        if self.length < 2 * self.copied + 2:
            raise UserError(
                "length must have room for the symbols, the mark, the answers and a blank, got "
                f"length={self.length} and copied={self.copied}."
            )

    @property
    def symbols(self) -> list[str]:
        return [*map(str, range(1, self.vocabulary - 1)), ".", "|"]

    @property
    def chance_accuracy(self) -> float:
        return 1 / (self.vocabulary - 2)

    def draw_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        blank, mark = self.vocabulary - 2, self.vocabulary - 1
        blanks = self.length - 2 * self.copied - 1
        strings = generator.integers(self.vocabulary - 2, size=(rows, self.copied))
        shares = np.full(self.copied, 1 / self.copied)
        blanks_before = generator.multinomial(blanks, shares, size=rows).cumsum(axis=1)
        tokens = np.full((rows, self.length), blank)
        np.put_along_axis(tokens, blanks_before + np.arange(self.copied), strings, axis=1)
        tokens[:, self.copied + blanks] = mark
        positions = np.arange(self.length - self.copied, self.length) + 1
        return QueryRows(
            with_bos(tokens), np.broadcast_to(positions, strings.shape), FIRST_ID + strings
        )
