"""Flip-flop language modelling (Liu et al. 2023, arXiv 2306.00946)."""

from dataclasses import dataclass

import numpy as np

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.batches import IGNORE_INDEX
from attention_zoo.tasks.data.diagnostics.base import FIRST, Diagnostic, QueryRows
from attention_zoo.tasks.data.tokenizers import BOS


@dataclass(frozen=True, kw_only=True)
class FlipFlop(Diagnostic):
    """`w 1 i 0 i 0 r 1 … r`: reading asks for the bit that was written last.

    Instructions with a bit each: write it, ignore it, read. The first one writes, the last one
    reads; of the others a share is ignored, and as many write as read.

    Unlike in the paper, only the bits that are read are predicted, and bos stands in front.

    Args:
        length: of a sequence, in tokens: bos, and two for each instruction but the last.
        ignore: share of the instructions to be ignored.
    """

    length: int = 64
    ignore: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 4 or self.length % 2:
            raise UserError(f"length must be even and at least 4, got {self.length}.")
        if not 0 <= self.ignore < 1:
            raise UserError(f"ignore must be at least 0 and below 1, got {self.ignore}.")

    @property
    def symbols(self) -> list[str]:
        return ["w", "i", "r", "0", "1"]

    def draw(self, generator: np.random.Generator, rows: int) -> QueryRows:
        count = self.length // 2
        shares = [(1 - self.ignore) / 2, self.ignore, (1 - self.ignore) / 2]
        kinds = generator.choice(3, size=(rows, count), p=shares)
        kinds[:, 0], kinds[:, -1] = 0, 2
        writes, reads = kinds == 0, kinds == 2
        bits = generator.integers(2, size=(rows, count))
        last_write = np.maximum.accumulate(np.where(writes, np.arange(count), 0), axis=1)
        bits = FIRST + 3 + np.where(reads, np.take_along_axis(bits, last_write, axis=1), bits)

        inputs = np.empty((rows, 2 * count), dtype=np.int64)
        inputs[:, 0], inputs[:, 1::2], inputs[:, 2::2] = BOS, FIRST + kinds, bits[:, :-1]
        places = np.broadcast_to(1 + 2 * np.arange(count), bits.shape)
        return QueryRows(inputs, places, np.where(reads, bits, IGNORE_INDEX))
