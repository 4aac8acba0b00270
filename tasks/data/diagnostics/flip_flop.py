"""Flip-flop language modelling (Liu et al. 2023, arXiv 2306.00946)."""

from dataclasses import dataclass

import numpy as np

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.batches import IGNORE_INDEX
from attention_zoo.tasks.data.diagnostics.base import Diagnostic, QueryRows
from attention_zoo.tasks.data.tokenizers import BOS, FIRST_ID


@dataclass(frozen=True, kw_only=True)
class FlipFlop(Diagnostic):
    """Draws `w 1 i 0 i 0 r 1 … r`: a read is a query for the bit that was written last.

    Each instruction has a bit: write it, ignore it, or read it. The first one writes and the last
    one reads. Of the others a fraction is ignored, and the rest write or read equally often.

    Unlike in the paper, only the bits that are read are predicted, and a sequence starts with bos.

    Args:
        length: of a sequence, in tokens: bos, and two for each instruction but the last.
        ignore_fraction: of the instructions, the fraction that is ignored.
    """

    length: int = 64
    ignore_fraction: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 4 or self.length % 2:
            raise UserError(f"length must be even and at least 4, got {self.length}.")
        if not 0 <= self.ignore_fraction < 1:
            raise UserError(
                f"ignore_fraction must be at least 0 and below 1, got {self.ignore_fraction}."
            )

    @property
    def symbols(self) -> list[str]:
        return ["w", "i", "r", "0", "1"]

    @property
    def chance_accuracy(self) -> float:
        return 1 / 2

    def draw_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        count = self.length // 2
        probability = (1 - self.ignore_fraction) / 2
        probabilities = [probability, self.ignore_fraction, probability]
        instructions = generator.choice(3, size=(rows, count), p=probabilities)
        instructions[:, 0], instructions[:, -1] = 0, 2
        writes, reads = instructions == 0, instructions == 2
        bits = generator.integers(2, size=(rows, count))
        last_write = np.maximum.accumulate(np.where(writes, np.arange(count), 0), axis=1)
        bits = np.where(reads, np.take_along_axis(bits, last_write, axis=1), bits)
        bits += FIRST_ID + 3

        inputs = np.empty((rows, 2 * count), dtype=np.int64)
        inputs[:, 0], inputs[:, 2::2] = BOS, bits[:, :-1]
        inputs[:, 1::2] = FIRST_ID + instructions
        query_positions = np.broadcast_to(1 + 2 * np.arange(count), bits.shape)
        return QueryRows(inputs, query_positions, np.where(reads, bits, IGNORE_INDEX))
