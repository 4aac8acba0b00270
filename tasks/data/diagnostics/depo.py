"""Depo, k hops along a cycle (Allen-Zhu 2025, arXiv 2512.17351)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from attention_zoo.errors import UserError, check_positive
from attention_zoo.tasks.data.batches import IGNORE_INDEX
from attention_zoo.tasks.data.diagnostics.base import QueryRows, StringDiagnostic
from attention_zoo.tasks.data.tokenizers import BOS, FIRST_ID, PAD


@dataclass(frozen=True, kw_only=True)
class Depo(StringDiagnostic):
    """Draws `a b c a b c k2 a = c`: nodes with their successors, then queries for k hops.

    The nodes of a cycle have names of one or more tokens, of which the last one ends a name. Their
    edges come in random order. A query asks for the node that follows k hops later; the tokens of
    its name are predicted. Nodes are n with a weight of 1 / (n + √length); each k is equally
    frequent. At another length all cycles have that many nodes.

    Args:
        length: of the longest cycles, in nodes.
        min_length: of the shortest ones.
        min_hops, max_hops: that a query may ask for.
        queries: in a sequence, each for another node; no more than there are nodes.
        letters: tokens that a name is made of, and as many again that end it.
        min_letters, max_letters: of a name, all equally frequent before equal names are left out.
    """

    rows_per_draw: ClassVar[int] = 1000

    length: int = 50
    min_length: int = 3
    min_hops: int = 1
    max_hops: int = 8
    queries: int = 10
    letters: int = 50
    min_letters: int = 1
    max_letters: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(queries=self.queries, letters=self.letters)
        for name in ("hops", "letters"):
            least, most = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if not 1 <= least <= most:
                raise UserError(
                    f"min_{name} must be at least 1 and at most max_{name}, got min_{name}={least} "
                    f"and max_{name}={most}."
                )
        names = sum(self.letters**n for n in range(self.min_letters, self.max_letters + 1))
        if names < 2 * self.length:
            raise UserError(
                "there must be names for twice as many nodes as there are, so that drawing them "
                f"ends, got {names} names and length={self.length}; give more letters."
            )

    @property
    def symbols(self) -> list[str]:
        letters = [str(letter) for letter in range(1, self.letters + 1)]
        hops = [f"k{hops}" for hops in range(1, self.max_hops + 1)]
        return [*letters, *(f"{letter}." for letter in letters), "=", *hops]

    @property
    def chance_accuracy(self) -> float:
        """Return the share of the most frequent token of an answer.

        All letters are equally frequent, and so are all that end a name; how many do is estimated
        from 500 sequences.
        """
        answers = self.draw_rows(np.random.default_rng(0), 500).answers
        asked = answers[answers != IGNORE_INDEX]
        ends = (asked >= FIRST_ID + self.letters).mean()
        return float(max(ends, 1 - ends) / self.letters)

    def draw_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        sizes = np.arange(self.min_length, self.length + 1)
        weights = 1 / (sizes + self.length**0.5)
        counts = generator.choice(sizes, size=rows, p=weights / weights.sum())
        most_queries = min(self.queries, self.length)
        width = 1 + 2 * self.max_letters * (self.length + most_queries) + 2 * most_queries
        inputs = np.full((rows, width), PAD)
        positions = np.zeros((rows, most_queries * self.max_letters), dtype=np.int64)
        answers = np.full_like(positions, IGNORE_INDEX)
        for row, count in enumerate(counts.tolist()):
            tokens, asked, given = self._draw_row(generator, count)
            inputs[row, : len(tokens)] = tokens
            positions[row, : len(asked)] = asked
            answers[row, : len(given)] = given
        return QueryRows(inputs, positions, answers)

    def _draw_row(
        self, generator: np.random.Generator, count: int
    ) -> tuple[list[int], list[int], list[int]]:
        """Return the tokens of a sequence of `count` nodes, and its queries' positions, answers."""
        names = self._draw_names(generator, count)
        tokens = [BOS]
        for node in generator.permutation(count).tolist():
            tokens += [*names[node], *names[(node + 1) % count]]
        asked_nodes = generator.permutation(count)[: self.queries].tolist()
        hops = generator.integers(self.min_hops, self.max_hops, size=self.queries, endpoint=True)
        first_hop = FIRST_ID + 2 * self.letters
        positions: list[int] = []
        answers: list[int] = []
        for node, k in zip(asked_nodes, hops.tolist(), strict=False):
            answer = names[(node + k) % count]
            tokens += [first_hop + k, *names[node], first_hop]
            positions += range(len(tokens) - 1, len(tokens) - 1 + len(answer))
            tokens += answer
            answers += answer
        return tokens, positions, answers

    def _draw_names(self, generator: np.random.Generator, count: int) -> list[tuple[int, ...]]:
        """Draw `count` different names, in random order."""
        names: set[tuple[int, ...]] = set()
        while len(names) < count:
            missing = count - len(names)
            lengths = generator.integers(
                self.min_letters, self.max_letters, size=missing, endpoint=True
            )
            letters = FIRST_ID + generator.integers(self.letters, size=(missing, self.max_letters))
            letters[np.arange(missing), lengths - 1] += self.letters
            names |= {
                tuple(row[:length])
                for row, length in zip(letters.tolist(), lengths.tolist(), strict=True)
            }
        # A set has an order of its own, in which longer names would be later.
        ordered = sorted(names)
        return [ordered[index] for index in generator.permutation(count).tolist()]
