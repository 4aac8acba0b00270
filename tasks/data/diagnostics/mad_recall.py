"""In-context recall and noisy recall of MAD (Poli et al. 2024, arXiv 2403.17844)."""

from dataclasses import dataclass

import numpy as np

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.batches import IGNORE_INDEX
from attention_zoo.tasks.data.diagnostics.base import Diagnostic, QueryRows
from attention_zoo.tasks.data.tokenizers import BOS, FIRST_ID


@dataclass(frozen=True, kw_only=True)
class MadRecall(Diagnostic):
    """Draws `k3 v1 k5 v1 k3 v1 … k5`: a key that was there before is a query for its value.

    Every pair has a random key; the map from keys to values is drawn anew for each sequence. Noise
    takes the place of a pair with a probability of `noise_fraction`. The last key is one of those
    before, all equally likely. In training every token is a query for the next one.

    Unlike in the authors' code, a sequence starts with bos, and at least one pair is no noise.

    Args:
        length: of a sequence, in tokens, with the last value, which is only an answer.
        vocabulary: symbols, with those of the noise; half of the others are keys, half are values.
        noise_vocabulary: symbols of the noise.
        noise_fraction: of the pairs, the fraction that is noise.
    """

    length: int = 128
    vocabulary: int = 16
    noise_vocabulary: int = 0
    noise_fraction: float = 0.0
    size: int = 12_800
    valid: int = 1280
    test: int = 1280

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 4 or self.length % 2:
            raise UserError(f"length must be even and at least 4, got {self.length}.")
        if self.noise_vocabulary < 0 or self.vocabulary - self.noise_vocabulary < 2:
            raise UserError(
                "vocabulary must have a key and a value next to the noise, got "
                f"vocabulary={self.vocabulary} and noise_vocabulary={self.noise_vocabulary}."
            )
        if not 0 <= self.noise_fraction < 1 or bool(self.noise_fraction) != bool(
            self.noise_vocabulary
        ):
            raise UserError(
                "noise_fraction must be at least 0 and below 1, and 0 exactly if there are no "
                f"symbols of noise, got noise_fraction={self.noise_fraction} and "
                f"noise_vocabulary={self.noise_vocabulary}."
            )

    @property
    def keys(self) -> int:
        """Return the number of keys; their symbols come first."""
        return (self.vocabulary - self.noise_vocabulary) // 2

    @property
    def values(self) -> int:
        """Return the number of values; their symbols follow the keys."""
        return self.vocabulary - self.noise_vocabulary - self.keys

    @property
    def symbols(self) -> list[str]:
        kinds = {"k": self.keys, "v": self.values, "n": self.noise_vocabulary}
        return [f"{kind}{i}" for kind, count in kinds.items() for i in range(1, count + 1)]

    @property
    def chance_accuracy(self) -> float:
        return 1 / self.values

    def draw_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        tokens, is_query = self.draw_tokens(generator, rows)
        positions = np.arange(1, self.length, 2)
        answers = np.where(is_query, FIRST_ID + tokens[:, 1::2], IGNORE_INDEX)
        return QueryRows(
            with_bos(tokens[:, :-1]), np.broadcast_to(positions, answers.shape), answers
        )

    def draw_training_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        return next_token_queries(self.draw_tokens(generator, rows)[0])

    def draw_tokens(
        self, generator: np.random.Generator, rows: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw the symbols [n length] and whether each key was there before [n length/2]."""
        pairs = self.length // 2
        keys = generator.integers(self.keys, size=(rows, pairs))
        value_of_key = self.keys + generator.integers(self.values, size=(rows, self.keys))
        is_noise = generator.random((rows, pairs)) < self.noise_fraction
        is_noise[np.arange(rows), generator.integers(pairs - 1, size=rows)] = False
        is_noise[:, -1] = False

        is_key = (keys[:, :, None] == np.arange(self.keys)) & ~is_noise[:, :, None]
        before = np.logical_or.accumulate(is_key[:, :-1], axis=1)
        # The largest of uniform numbers at the keys that are there: any of them, equally likely.
        keys[:, -1] = (generator.random((rows, self.keys)) * before[:, -1]).argmax(axis=1)

        tokens = np.empty((rows, self.length), dtype=np.int64)
        tokens[:, ::2], tokens[:, 1::2] = keys, np.take_along_axis(value_of_key, keys, axis=1)
        if self.noise_vocabulary:
            noise = generator.integers(self.noise_vocabulary, size=tokens.shape)
            is_noise_token = is_noise.repeat(2, axis=1)
            tokens[is_noise_token] = self.keys + self.values + noise[is_noise_token]

        is_query = np.zeros((rows, pairs), dtype=bool)
        is_query[:, 1:] = np.take_along_axis(before, keys[:, 1:, None], axis=2)[:, :, 0]
        return tokens, is_query & ~is_noise


def with_bos(symbols: np.ndarray) -> np.ndarray:
    """Return symbols [n t] as token ids [n t+1] that start with bos."""
    return np.concatenate([np.full((len(symbols), 1), BOS), FIRST_ID + symbols], axis=1)


def next_token_queries(symbols: np.ndarray) -> QueryRows:
    """Return symbols [n t] without the last, each a query for the next one."""
    positions = np.arange(1, symbols.shape[1])
    answers = FIRST_ID + symbols[:, 1:]
    return QueryRows(with_bos(symbols[:, :-1]), np.broadcast_to(positions, answers.shape), answers)
