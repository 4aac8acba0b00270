"""In-context languages (Akyürek et al. 2024, arXiv 2401.12973)."""

from dataclasses import dataclass

import numpy as np

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.batches import IGNORE_INDEX
from attention_zoo.tasks.data.diagnostics.base import Diagnostic, QueryRows, draw_distinct
from attention_zoo.tasks.data.tokenizers import BOS, FIRST_ID, PAD

FEWEST = 4  # states, and symbols, of an automaton
MOST_WAYS = 3  # out of a state


@dataclass(frozen=True, kw_only=True)
class InContextLanguages(Diagnostic):
    """Draws `c a f | c a b a | …`: strings of a random automaton, another one in each sequence.

    An automaton has 4 to `states` states, and 4 to all of the symbols. Each state leads to 1 to 3
    others, each by a symbol of its own. A string starts in the first state and takes every way out
    with equal probability. In training, each symbol is an answer, as in the authors' code. In the
    other splits, a symbol is one if its state has no other way out and was left before, so that
    the sequence gives the answer; sequences without one are left out. The authors instead count
    all predictions, as right if the automaton allows them.

    Unlike in the authors' code, a sequence starts with bos, and two splits may share an automaton,
    by a chance that is very small: each sequence has its own.

    Args:
        length: of the longest strings, in symbols; the shortest has one.
        states: the most states of an automaton.
        vocabulary: symbols, without the separator.
        min_strings: the fewest strings of a sequence.
        max_strings: the most strings of a sequence.
    """

    length: int = 49
    states: int = 12
    vocabulary: int = 18
    min_strings: int = 10
    max_strings: int = 19
    size: int = 5000
    valid: int = 250
    test: int = 250

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.states < FEWEST or self.vocabulary < FEWEST:
            raise UserError(
                f"states and vocabulary must be at least {FEWEST}, got "
                f"states={self.states} and vocabulary={self.vocabulary}."
            )
        if not 2 <= self.min_strings <= self.max_strings:
            raise UserError(
                "min_strings must be at least 2 and at most max_strings, got "
                f"min_strings={self.min_strings} and max_strings={self.max_strings}."
            )

    @property
    def symbols(self) -> list[str]:
        return [*map(str, range(1, self.vocabulary + 1)), "|"]

    @property
    def chance_accuracy(self) -> float:
        return 1 / self.vocabulary

    def draw_training_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        symbols, _ = self.draw_strings(generator, rows)
        return self._as_queries(symbols, symbols < self.vocabulary)

    def draw_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        drawn = self._as_queries(*self.draw_strings(generator, rows))
        has_query = (drawn.answers != IGNORE_INDEX).any(axis=1)
        return QueryRows(*(part[has_query] for part in drawn))

    def _as_queries(self, symbols: np.ndarray, is_answer: np.ndarray) -> QueryRows:
        """Return strings [n t], with -1 after their end, as rows; the first symbol is no answer."""
        is_end = symbols < 0
        tokens = np.where(is_end, PAD, FIRST_ID + symbols)
        inputs = np.concatenate([np.full((len(tokens), 1), BOS), tokens[:, :-1]], axis=1)
        answers = np.where(is_answer & ~is_end, tokens, IGNORE_INDEX)[:, 1:]
        positions = np.arange(1, tokens.shape[1])
        return QueryRows(inputs, np.broadcast_to(positions, answers.shape), answers)

    def draw_strings(
        self, generator: np.random.Generator, rows: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw strings [n t] with -1 after their end, and which symbols the sequence gives."""
        ways, symbol_of_way, state_of_way = self.draw_automata(generator, rows)
        counts = generator.integers(self.min_strings, self.max_strings, size=rows, endpoint=True)
        lengths = generator.integers(1, self.length, size=(rows, self.max_strings), endpoint=True)
        width = self.max_strings * (self.length + 1) - 1
        symbols = np.full((rows, width), -1)
        is_given = np.zeros((rows, width), dtype=bool)
        was_left = np.zeros((rows, self.states), dtype=bool)
        state, string, offset = (np.zeros(rows, dtype=np.int64) for _ in range(3))
        for column in range(width):
            (row,) = np.nonzero(string < counts)
            at_end = offset[row] == lengths[row, string[row]]
            row, end_row = row[~at_end], row[at_end]
            string[end_row] += 1
            state[end_row] = offset[end_row] = 0
            symbols[end_row[string[end_row] < counts[end_row]], column] = self.vocabulary

            source = state[row]
            way = (generator.random(len(row)) * ways[row, source]).astype(np.int64)
            symbols[row, column] = symbol_of_way[row, source, way]
            is_given[row, column] = (ways[row, source] == 1) & was_left[row, source]
            was_left[row, source] = True
            state[row] = state_of_way[row, source, way]
            offset[row] += 1
        return symbols, is_given

    def draw_automata(
        self, generator: np.random.Generator, rows: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw the number of ways out of each state [n s], and their symbols and states [n s 3]."""
        states = generator.integers(FEWEST, self.states, size=(rows, 1, 1), endpoint=True)
        alphabet = generator.integers(FEWEST, self.vocabulary, size=(rows, 1, 1), endpoint=True)
        ways = generator.integers(1, MOST_WAYS, size=(rows, self.states), endpoint=True)
        # The first in a random order of those that may be chosen are different ones.
        order = generator.random((rows, self.states, self.vocabulary))
        order += np.arange(self.vocabulary) >= alphabet
        letters = order.argsort(axis=2)[:, :, :MOST_WAYS]
        symbol_of_letter = draw_distinct(
            generator, rows=rows, count=self.vocabulary, choices=self.vocabulary
        )
        symbol_of_way = np.take_along_axis(symbol_of_letter[:, None], letters, axis=2)

        order = generator.random((rows, self.states, self.states))
        order += (np.arange(self.states) >= states) | np.eye(self.states, dtype=bool)
        return ways, symbol_of_way, order.argsort(axis=2)[:, :, :MOST_WAYS]
