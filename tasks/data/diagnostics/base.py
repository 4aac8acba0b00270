"""What a diagnostic is: sequences of symbols, the places where they ask, and the answers."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.sources.base import SPLITS, split_of
from attention_zoo.tasks.data.tokenizers import SPECIALS

FIRST = len(SPECIALS)  # the token of the first symbol
ROUND = 10_000  # sequences drawn at once


class QueryRows(NamedTuple):
    """Sequences of n rows that ask a questions each, as tokens.

    inputs: [n t], bos first.
    places: [n a], where in the row a question stands.
    answers: [n a], the token to predict there; `IGNORE_INDEX` where there is no question.
    """

    inputs: np.ndarray
    places: np.ndarray
    answers: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Diagnostic(ABC):
    """Draws sequences of one kind and length.

    A hash of a sequence decides its split, so no size and no seed makes the splits share one; and
    no split holds a sequence twice.

    Args:
        length: of the sequences, as the kind counts it.
        size, valid, test: sequences in each split.
        seed: of the draw.
    """

    length: int
    size: int = 100_000
    valid: int = 1000
    test: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("length", "size", "valid", "test"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}.")

    @property
    @abstractmethod
    def symbols(self) -> list[str]:
        """Their names; symbol i is token `FIRST` + i."""

    @abstractmethod
    def draw(self, generator: np.random.Generator, rows: int) -> QueryRows:
        """Sequences of any split."""

    @property
    def tokens(self) -> int:
        """Of a sequence, with all that comes with what `length` counts."""
        return self.draw(np.random.default_rng(0), 1).inputs.shape[1]

    def at(self, length: int) -> Self:
        """The same kind at another length."""
        return replace(self, length=length)

    def key(self) -> dict[str, Any]:
        """Every input of `questions`, in plain types."""
        return {"source": type(self).__name__, "numpy": np.__version__, **asdict(self)}

    def questions(self, split: str) -> QueryRows:
        """The sequences of a split. Raises UserError where there are not as many."""
        generator = np.random.default_rng([self.seed, SPLITS.index(split)])
        size = "size" if split == "train" else split
        wanted = getattr(self, size)
        seen: set[bytes] = set()
        kept: list[QueryRows] = []
        while len(seen) < wanted:
            drawn = QueryRows(*(part.astype("<i4") for part in self.draw(generator, ROUND)))
            rows = []
            for row, tokens in enumerate(drawn.inputs):
                content = tokens.tobytes()
                if len(seen) < wanted and content not in seen and split_of(content) == split:
                    seen.add(content)
                    rows.append(row)
            if not rows:
                raise UserError(
                    f"there must be as many different {split} sequences of length {self.length} as "
                    f"are asked for, got data.source.{size}={wanted} and about {len(seen)} of "
                    "them; ask for fewer, or for longer ones."
                )
            kept.append(QueryRows(*(part[rows] for part in drawn)))
        return QueryRows(*map(np.concatenate, zip(*kept, strict=True)))


def distinct(generator: np.random.Generator, *, rows: int, count: int, choices: int) -> np.ndarray:
    """[rows count] numbers below `choices`, in each row all different, in random order.

    Floyd's algorithm (Bentley and Floyd 1987): its cost does not grow with `choices`.
    """
    chosen = np.empty((rows, count), dtype=np.int64)
    for place in range(count):
        last = choices - count + place
        drawn = generator.integers(last + 1, size=rows)
        taken = (chosen[:, :place] == drawn[:, None]).any(axis=1)
        chosen[:, place] = np.where(taken, last, drawn)
    return generator.permuted(chosen, axis=1)


def numbered(count: int) -> list[str]:
    """Symbols without a role of their own: 1, 2, …"""
    return [str(number) for number in range(1, count + 1)]
