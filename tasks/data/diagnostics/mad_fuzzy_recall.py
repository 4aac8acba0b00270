"""Fuzzy in-context recall of MAD (Poli et al. 2024, arXiv 2403.17844)."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from attention_zoo.errors import UserError, check_positive
from attention_zoo.tasks.data.batches import IGNORE_INDEX
from attention_zoo.tasks.data.diagnostics.base import Diagnostic, QueryRows, draw_distinct
from attention_zoo.tasks.data.diagnostics.mad_recall import next_token_queries

NO_SYMBOL = -1_000_000  # below 0 with any offset


@dataclass(frozen=True, kw_only=True)
class MadFuzzyRecall(Diagnostic):
    """Draws `. k3 k1 k4 v7 v2 k5 k2 k1 v1 … k3 k1 k4 v7`: keys and values of several symbols.

    A key that was there before is a query for its value. Each value has 1 to `value_symbols`
    different symbols. So has each key in training, up to `key_symbols`; there, every token is a
    query for the next one. In the other splits each key has `key_symbols`. The last pair is there
    before at a random place. Blanks fill up the beginning.

    Unlike in the authors' code, a sequence starts with bos, and the last pair is always there
    before: the latest places, which their loop may not reach, are not drawn.

    Args:
        length: of a sequence, in tokens, without the last one, which is only an answer.
        vocabulary: symbols, with the blank; half of the others are keys, half are values.
        key_symbols: the most symbols of a key.
        value_symbols: the most symbols of a value.
    """

    length: int = 128
    vocabulary: int = 16
    key_symbols: int = 3
    value_symbols: int = 3
    size: int = 12_800
    valid: int = 1280
    test: int = 1280

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(key_symbols=self.key_symbols, value_symbols=self.value_symbols)
        if self.keys < self.key_symbols or self.values < self.value_symbols:
            raise UserError(
                "vocabulary must have as many keys and values as one of them has symbols, got "
                f"vocabulary={self.vocabulary}, key_symbols={self.key_symbols} and "
                f"value_symbols={self.value_symbols}."
            )
        if self.length < 3 * (self.key_symbols + self.value_symbols):
            raise UserError(
                "length must have room for three pairs, got "
                f"length={self.length}, key_symbols={self.key_symbols} and "
                f"value_symbols={self.value_symbols}."
            )

    @property
    def keys(self) -> int:
        """Return the number of symbols of keys, which come first."""
        return (self.vocabulary - 1) // 2

    @property
    def values(self) -> int:
        """Return the number of symbols of values, which follow those of keys."""
        return self.vocabulary - 1 - self.keys

    @property
    def symbols(self) -> list[str]:
        kinds = {"k": self.keys, "v": self.values}
        return [*(f"{kind}{i}" for kind, count in kinds.items() for i in range(1, count + 1)), "."]

    @property
    def chance_accuracy(self) -> float:
        return 1 / self.values

    def draw_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        tokens, is_answer = self.draw_tokens(generator, rows, shortest_key=self.key_symbols)
        drawn = next_token_queries(tokens)
        return drawn._replace(answers=np.where(is_answer[:, 1:], drawn.answers, IGNORE_INDEX))

    def draw_training_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        return next_token_queries(self.draw_tokens(generator, rows, shortest_key=1)[0])

    def draw_tokens(
        self, generator: np.random.Generator, rows: int, *, shortest_key: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw the symbols [n length+1] and whether each is of a value that was there before."""
        draw_key = partial(
            draw_motifs,
            generator,
            rows,
            choices=self.keys,
            lengths=(shortest_key, self.key_symbols),
        )
        draw_value = partial(
            draw_motifs, generator, rows, choices=self.values, lengths=(1, self.value_symbols)
        )
        last_key, last_value = draw_key(), self.keys + draw_value()
        longest_pair = self.key_symbols + self.value_symbols
        last_length = count_symbols(last_key) + count_symbols(last_value)
        # Pairs are added up to here; the last one is placed first at `start` or soon after.
        limit = self.length - last_length - longest_pair
        start = generator.integers(limit - longest_pair, endpoint=True)

        writer = RowWriter(rows, self.length + 1)
        is_placed = np.zeros(rows, dtype=bool)
        seen = [(last_key, last_value)]
        while (is_open := writer.lengths < limit).any():
            key, value = draw_key(), self.keys + draw_value()
            is_last = is_open & ~is_placed & (writer.lengths >= start)
            key[is_last] = last_key[is_last]
            was_there = np.zeros(rows, dtype=bool)
            for number, (seen_key, seen_value) in enumerate(seen):
                is_same = (key == seen_key).all(axis=1)
                value[is_same] = seen_value[is_same]
                was_there |= is_same & (is_placed if number == 0 else True)
            writer.append(key, is_open)
            writer.append(value, is_open, is_answer=was_there)
            is_placed |= is_open & (key == last_key).all(axis=1)
            seen.append((key, value))
        everywhere = np.ones(rows, dtype=bool)
        writer.append(last_key, everywhere)
        writer.append(last_value, everywhere, is_answer=everywhere)
        return writer.align_right(blank=self.keys + self.values)


def draw_motifs(
    generator: np.random.Generator, rows: int, *, choices: int, lengths: tuple[int, int]
) -> np.ndarray:
    """Draw [n longest] different symbols below `choices`, followed by `NO_SYMBOL`.

    All lengths from the shortest to the longest are equally frequent.
    """
    shortest, longest = lengths
    symbols = draw_distinct(generator, rows=rows, count=longest, choices=choices)
    counts = generator.integers(shortest, longest, size=(rows, 1), endpoint=True)
    return np.where(np.arange(longest) < counts, symbols, NO_SYMBOL)


def count_symbols(motifs: np.ndarray) -> np.ndarray:
    """Return the number of symbols of each motif, [n]."""
    return (motifs >= 0).sum(axis=1)


class RowWriter:
    """Writes motifs one after the other, in rows of different lengths."""

    def __init__(self, rows: int, width: int) -> None:
        self.tokens = np.zeros((rows, width), dtype=np.int64)
        self.is_answer = np.zeros((rows, width), dtype=bool)
        self.lengths = np.zeros(rows, dtype=np.int64)

    def append(
        self, motifs: np.ndarray, is_open: np.ndarray, is_answer: np.ndarray | None = None
    ) -> None:
        """Append a motif to each row that is open, [n], and mark its symbols as answers."""
        for symbols in motifs.T:
            (row,) = np.nonzero(is_open & (symbols >= 0))
            self.tokens[row, self.lengths[row]] = symbols[row]
            if is_answer is not None:
                self.is_answer[row, self.lengths[row]] = is_answer[row]
            self.lengths[row] += 1

    def align_right(self, *, blank: int) -> tuple[np.ndarray, np.ndarray]:
        """Return symbols and marks with blanks at the beginning of the rows."""
        width = self.tokens.shape[1]
        index = np.arange(width) - (width - self.lengths)[:, None]
        tokens, is_answer = (
            np.take_along_axis(part, index.clip(min=0), axis=1)
            for part in (self.tokens, self.is_answer)
        )
        return np.where(index < 0, blank, tokens), is_answer & (index >= 0)
