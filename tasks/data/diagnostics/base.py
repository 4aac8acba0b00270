"""The base of the diagnostics: sequences of symbols with queries and their answers."""

import math
from abc import abstractmethod
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from attention_zoo.errors import UserError, check_not_negative, check_positive, short_repr
from attention_zoo.tasks.data.sources.base import SPLITS, Source, split_of
from attention_zoo.tasks.data.tokenizers import PAD
from attention_zoo.tasks.host_memory import check_memory

MOST = 1_000_000  # symbols, or tokens of a sequence
COUNTS = ("size", "valid", "test", "seed")  # options that have other limits


class QueryRows(NamedTuple):
    """n sequences with a queries each, as token ids."""

    inputs: np.ndarray  # [n t], bos first
    target_positions: np.ndarray  # [n a], the position of each query in its row
    answers: np.ndarray  # [n a], the token to predict there; `IGNORE_INDEX` for no query


@dataclass(frozen=True, kw_only=True)
class Diagnostic(Source[QueryRows]):
    """Draws sequences of one kind and length.

    A hash of a sequence decides its split. So the splits share no sequence, whatever their sizes
    and seeds; and no split has a sequence twice.

    Args:
        length: of the sequences; each kind says what it counts.
        size, valid, test: sequences in each split.
        seed: of the draw.
    """

    rows_per_draw: ClassVar[int] = 10_000

    length: int
    size: int = 100_000
    valid: int = 1000
    test: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_types()
        check_positive(length=self.length, size=self.size, valid=self.valid, test=self.test)
        check_not_negative(seed=self.seed)
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Raise UserError for sequences or symbols that would fill the memory."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and field.name not in COUNTS and value > MOST:
                raise UserError(f"{field.name} must be at most {MOST:,}, got {value:,}.")
        sequences = self.size + self.valid + self.test
        # Their tokens, and what tells that none is drawn twice; those of a draw have 8 bytes.
        needed = sequences * (4 * self.length + 100)
        check_memory(
            max(needed, 8 * self.length * self.rows_per_draw),
            f"{sequences:,} sequences of length {self.length:,}",
            "ask for fewer (data.source.size) or shorter ones (data.source.length)",
        )

    def _check_types(self) -> None:
        """Raise UserError for a value that is no number where the field is one."""
        for field in fields(self):
            value = getattr(self, field.name)
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            if field.type is int and not (is_number and isinstance(value, Integral)):
                raise UserError(f"{field.name} must be a whole number, got {short_repr(value)}.")
            if field.type is float and not (is_number and math.isfinite(value)):
                raise UserError(f"{field.name} must be a finite number, got {short_repr(value)}.")
            if field.type is bool and not isinstance(value, bool):
                raise UserError(f"{field.name} must be true or false, got {short_repr(value)}.")
            if field.type is str and not isinstance(value, str):
                raise UserError(f"{field.name} must be text, got {short_repr(value)}.")

    @property
    @abstractmethod
    def symbols(self) -> list[str]:
        """Return the names of the symbols; symbol i has token id `FIRST_ID` + i."""

    @property
    @abstractmethod
    def chance_accuracy(self) -> float:
        """Return the accuracy of the best guess that ignores the input, between 0 and 1."""

    @abstractmethod
    def draw_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        """Draw sequences of any split."""

    def draw_training_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        """Draw sequences to train on; some kinds train on more tokens than they test."""
        return self.draw_rows(generator, rows)

    @property
    def tokens_per_sequence(self) -> int:
        """Return the tokens of a sequence, with those that `length` does not count."""
        return self.draw_rows(np.random.default_rng(0), 1).inputs.shape[1]

    def with_length(self, length: int) -> Self:
        """Return the same kind at another length."""
        return replace(self, length=length)

    def cache_key(self) -> dict[str, Any]:
        return {"source": type(self).__name__, "numpy": np.__version__, **asdict(self)}

    def splits(self) -> dict[str, QueryRows]:
        return {split: self.draw_split(split) for split in SPLITS}

    def draw_split(self, split: str) -> QueryRows:
        """Draw the sequences of a split. Raise UserError if there are not enough different ones."""
        generator = np.random.default_rng([self.seed, SPLITS.index(split)])
        draw = self.draw_training_rows if split == "train" else self.draw_rows
        option = "size" if split == "train" else split
        size = getattr(self, option)
        seen: set[bytes] = set()
        parts: list[QueryRows] = []
        while len(seen) < size:
            drawn = QueryRows(*(x.astype("<i4") for x in draw(generator, self.rows_per_draw)))
            new_rows = []
            for row, tokens in enumerate(drawn.inputs):
                content = tokens[tokens != PAD].tobytes()  # The same at every width.
                if len(seen) < size and content not in seen and split_of(content) == split:
                    seen.add(content)
                    new_rows.append(row)
            if not new_rows:
                raise UserError(
                    f"there must be as many different {split} sequences of length {self.length} as "
                    f"are asked for, got data.source.{option}={size} and about {len(seen)} of "
                    "them; ask for fewer, or for longer ones."
                )
            parts.append(QueryRows(*(part[new_rows] for part in drawn)))
        return QueryRows(*map(np.concatenate, zip(*parts, strict=True)))


def draw_distinct(
    generator: np.random.Generator, *, rows: int, count: int, choices: int
) -> np.ndarray:
    """Draw [rows count] numbers below `choices`, all different within a row, in random order.

    Floyd's algorithm (Bentley and Floyd 1987): its cost does not grow with `choices`.
    """
    chosen = np.empty((rows, count), dtype=np.int64)
    for column in range(count):
        last = choices - count + column
        drawn = generator.integers(last + 1, size=rows)
        repeated = (chosen[:, :column] == drawn[:, None]).any(axis=1)
        chosen[:, column] = np.where(repeated, last, drawn)
    return generator.permuted(chosen, axis=1)


@dataclass(frozen=True, kw_only=True)
class StringDiagnostic(Diagnostic):
    """Draws strings of several lengths; at another length, of that length alone.

    Args:
        min_length: of the shortest strings, `length` being that of the longest.
    """

    min_length: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.min_length <= self.length:
            raise UserError(
                "min_length must be at least 1 and at most length, got "
                f"min_length={self.min_length} and length={self.length}."
            )

    def with_length(self, length: int) -> Self:
        return replace(self, length=length, min_length=length)


@dataclass(frozen=True, kw_only=True)
class ModularDiagnostic(StringDiagnostic):
    """Draws expressions whose value modulo `modulus` is the answer."""

    modulus: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.modulus < 2:
            raise UserError(f"modulus must be at least 2, got {self.modulus}.")
