"""SCAN, commands and the actions that they mean (Lake and Baroni 2018, arXiv 1711.00350)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np

from attention_zoo.errors import Unsupported, UserError
from attention_zoo.tasks.data.diagnostics.base import Diagnostic, QueryRows
from attention_zoo.tasks.data.diagnostics.prompts import most_frequent_share, prompt_rows
from attention_zoo.tasks.data.sources.base import split_of
from attention_zoo.tasks.data.tokenizers import EOS, FIRST_ID

VERBS = ("walk", "look", "run", "jump")
DIRECTIONS = ("left", "right")
REPETITIONS = {"twice": 2, "thrice": 3}
ACTIONS = (*(f"I_{verb.upper()}" for verb in VERBS), "I_TURN_LEFT", "I_TURN_RIGHT")
WORDS = (*VERBS, "turn", *DIRECTIONS, "opposite", "around", *REPETITIONS, "and", "after")
SYMBOLS = [*WORDS, "|", *ACTIONS]

Meaning = tuple[tuple[str, ...], tuple[str, ...]]  # of a command: its words, its actions


@dataclass(frozen=True, kw_only=True)
class Scan(Diagnostic):
    """Gives `jump twice | I_JUMP I_JUMP`: the actions and an eos are the answer.

    All 20,910 commands of the grammar are made; none is drawn twice. Commands of up to
    `train_length` actions are for train and valid, by a hash, and all longer ones are for test.

    The paper trains on up to 22 actions, Kazemnejad et al. 2023 (arXiv 2305.19466) on up to 25.

    Args:
        length: of the longest commands, in actions; the grammar has none of more than 48.
        train_length: of the longest commands of train and valid.
    """

    length: int = 48
    train_length: int = 22
    size: int = 16_000
    valid: int = 800
    test: int = 3920

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.train_length < self.length <= 48:
            raise UserError(
                "train_length must be at least 1 and below length, which is at most 48, got "
                f"train_length={self.train_length} and length={self.length}."
            )

    @property
    def symbols(self) -> list[str]:
        return SYMBOLS

    @property
    def chance_accuracy(self) -> float:
        """Return the share of the most frequent action in the commands for test."""
        return most_frequent_share(self._rows(self._commands("test")).answers)

    def with_length(self, length: int) -> Self:
        raise Unsupported(
            "SCAN's test split has the commands of all lengths above data.source.train_length, so "
            f"there are no other lengths to test at, got {length}."
        )

    def draw_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        commands = self._commands("train")
        return self._rows([commands[i] for i in generator.integers(len(commands), size=rows)])

    def draw_split(self, split: str) -> QueryRows:
        commands = self._commands(split)
        option = "size" if split == "train" else split
        size = getattr(self, option)
        if size > len(commands):
            raise UserError(
                f"data.source.{option} must be at most the {len(commands):,} commands that there "
                f"are for {split}, got {size}."
            )
        order = np.random.default_rng(self.seed).permutation(len(commands))
        return self._rows([commands[index] for index in order[:size]])

    def _commands(self, split: str) -> list[Meaning]:
        """Return the commands of a split, in the order of the grammar."""
        if split == "test":
            return [x for x in all_commands() if self.train_length < len(x[1]) <= self.length]
        return [
            x
            for x in all_commands()
            if len(x[1]) <= self.train_length
            and (split_of(" ".join(x[0]).encode()) == "valid") == (split == "valid")
        ]

    def _rows(self, commands: list[Meaning]) -> QueryRows:
        ids = {symbol: FIRST_ID + index for index, symbol in enumerate(SYMBOLS)}
        prompts = [[ids[word] for word in (*words, "|")] for words, _ in commands]
        answers = [[*(ids[action] for action in actions), EOS] for _, actions in commands]
        # The longest command has two parts of four words, and a word between them.
        return prompt_rows(prompts, answers, prompt_width=10, answer_width=self.length + 1)


@lru_cache
def all_commands() -> tuple[Meaning, ...]:
    """Return all commands with their actions: S, S and S, or S after S (figures 6 and 7)."""
    parts = list(repeated_phrases())
    commands = list(parts)
    for first_words, first_actions in parts:
        for second_words, second_actions in parts:
            commands += [
                ((*first_words, "and", *second_words), first_actions + second_actions),
                ((*first_words, "after", *second_words), second_actions + first_actions),
            ]
    return tuple(commands)


def repeated_phrases() -> Iterator[Meaning]:
    """Yield S: V, V twice and V thrice."""
    for words, actions in phrases():
        yield words, actions
        for word, count in REPETITIONS.items():
            yield (*words, word), actions * count


def phrases() -> Iterator[Meaning]:
    """Yield V: a verb, alone or with a direction, opposite or around; turn has always one."""
    meanings: dict[str, tuple[str, ...]] = {verb: (f"I_{verb.upper()}",) for verb in VERBS}
    for verb, action in meanings.items():
        yield (verb,), action
    for verb, action in (meanings | {"turn": ()}).items():
        for direction in DIRECTIONS:
            turn = (f"I_TURN_{direction.upper()}",)
            yield (verb, direction), turn + action
            yield (verb, "opposite", direction), turn * 2 + action
            yield (verb, "around", direction), (turn + action) * 4
