"""The data module of diagnostics: language modelling whose answers are right or wrong."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from attention_zoo.errors import Unsupported, UserError
from attention_zoo.tasks.data.batches import (
    IGNORE_INDEX,
    EpochBatches,
    LanguageBatch,
    ResumableLoader,
    in_batches,
)
from attention_zoo.tasks.data.diagnostics.base import Diagnostic, QueryRows
from attention_zoo.tasks.data.module import PreparedData, TokenizerFactory
from attention_zoo.tasks.data.sources.base import SPLITS

PROBES = 3


class DiagnosticData(PreparedData):
    """Sequences that ask questions; nothing but the answers is predicted.

    The test split comes at the training length, and again at each of `test_lengths`.

    Args:
        source: draws the sequences.
        tokenizer: makes the tokenizer of its symbols.
        cache_dir: where prepared data are kept.
        batch_size: sequences in a batch, on each rank.
        test_lengths: other lengths to test at, as the source counts them.
        answer_tokens: that an answer of the samples takes, at most.
        seed: of the order of the sequences.
        num_workers: processes that prepare batches.
        probes: prompts to answer during training; by default the first questions of some valid
            sequences.
    """

    source: Diagnostic

    def __init__(
        self,
        *,
        source: Diagnostic,
        tokenizer: TokenizerFactory,
        cache_dir: str | Path,
        batch_size: int = 128,
        test_lengths: Sequence[int] = (),
        answer_tokens: int = 1,
        seed: int = 0,
        num_workers: int = 0,
        probes: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            source=source,
            tokenizer=tokenizer,
            cache_dir=cache_dir,
            seed=seed,
            num_workers=num_workers,
        )
        for name, value in (("batch_size", batch_size), ("answer_tokens", answer_tokens)):
            if value < 1:
                raise UserError(f"data.{name} must be at least 1, got {value}.")
        if len({source.length, *test_lengths}) <= len(test_lengths):
            raise UserError(
                "data.test_lengths must differ from each other and from the length that is trained "
                f"and tested anyway, got {list(test_lengths)} and {source.length}."
            )
        self.batch_size = batch_size
        self.answer_tokens = answer_tokens
        self.others = {f"test@{length}": source.at(length) for length in test_lengths}
        self.test_names = ["test", *self.others]
        self._chosen_probes = probes

    def options(self) -> dict[str, Any]:
        return {"others": [source.key() for source in self.others.values()]}

    def build(self) -> dict[str, Any]:
        tokenizer = self.tokenizer_factory(self.source.symbols)
        if getattr(tokenizer, "symbols", None) != self.source.symbols:
            raise Unsupported(
                f"{type(self.source).__name__} needs a model of its own symbols, with these "
                f"options {len(self.source.symbols)}, got {tokenizer.vocabulary_size} tokens of "
                "something else; take the data that it was trained on, at any length."
            )
        report: dict[str, Any] = {"source": self.source.key(), "notes": []}
        values: dict[str, Any] = {"tokenizer": tokenizer.state(), "report": report}
        drawn = {split: self.source.questions(split) for split in SPLITS}
        drawn |= {name: source.questions("test") for name, source in self.others.items()}
        for split, questions in drawn.items():
            for part, array in questions._asdict().items():
                values[f"{split}_{part}"] = array
            report[split] = {
                "sequences": len(questions.inputs),
                "tokens": int((questions.inputs != tokenizer.pad_id).sum()),
                "questions": int((questions.answers != IGNORE_INDEX).sum()),
            }
        return values

    def unpack(self, values: dict[str, Any]) -> None:
        self.questions = {
            split: QueryRows(*(values[f"{split}_{part}"] for part in QueryRows._fields))
            for split in ("train", "valid", *self.test_names)
        }
        self.probes, self.probe_references = self._first_questions(self.questions["valid"])
        if self._chosen_probes is not None:
            self.probes, self.probe_references = list(self._chosen_probes), None
            self.tokenizer.encode_lines(self.probes)  # Refuses strange symbols before a training.

    def _first_questions(self, questions: QueryRows) -> tuple[list[str], list[str]]:
        """Sequences up to their first question, and the answers to it and to those right behind."""
        prompts, references = [], []
        for inputs, places, answers in zip(*(part[:PROBES] for part in questions), strict=True):
            real = answers != IGNORE_INDEX
            asked = dict(zip(places[real].tolist(), answers[real].tolist(), strict=True))
            first = min(asked)
            behind = range(first, first + self.answer_tokens)
            run = [asked[place] for place in behind if place in asked]
            prompts.append(self.tokenizer.decode(inputs[: first + 1]).strip())
            references.append(self.tokenizer.decode(run).strip())
        return prompts, references

    def example(self) -> LanguageBatch:
        """As wide as all batches, with as many questions as a row has in the mean."""
        inputs, _, answers = self.questions["train"]
        questions = round((answers != IGNORE_INDEX).sum(1).mean())
        tokens = torch.full((1, inputs.shape[1]), self.tokenizer.eos_id)
        places = torch.arange(questions)[None]
        return LanguageBatch(tokens, tokens[:, :questions], target_positions=places)

    def refuse_longer_than(self, limit: int) -> None:
        for name, questions in self.questions.items():
            tokens = questions.inputs.shape[1]
            if tokens > limit:
                option = "data.test_lengths" if name in self.others else "data.source.length"
                raise UserError(
                    f"{option} must make sequences of at most the model's longest length, got "
                    f"{tokens} tokens and {limit}; lower {option}."
                )

    def tokens_at(self, length: int, split: str) -> int:
        return self._at(length).tokens

    def tests_at(
        self, length: int, split: str, *, stride: int, rank: int, world_size: int
    ) -> dict[str, ResumableLoader]:
        """The questions of sequences of that length. Nothing slides."""
        source = self._at(length)
        rows = QueryDataset(source.questions(split))
        batch_size = max(1, self.batch_size * self.source.tokens // source.tokens)
        sampler = OrderedRows(
            len(rows), batch_size=batch_size, seed=self.seed, rank=rank, world_size=world_size
        )
        return {"": ResumableLoader(rows, sampler, num_workers=self.num_workers)}

    def _at(self, length: int) -> Diagnostic:
        return self.source if length == self.source.length else self.source.at(length)

    def train_dataloader(self) -> ResumableLoader:
        return self._loader("train", ShuffledRows)

    def val_dataloader(self) -> ResumableLoader:
        return self._loader("valid", OrderedRows)

    def test_dataloader(self) -> list[ResumableLoader]:
        return [self._loader(name, OrderedRows) for name in self.test_names]

    def _loader(self, split: str, order: type["OrderedRows"]) -> ResumableLoader:
        rows = QueryDataset(self.questions[split])
        sampler = order(len(rows), batch_size=self.batch_size, seed=self.seed, **self.share())
        return ResumableLoader(rows, sampler, num_workers=self.num_workers)


class QueryDataset(Dataset[LanguageBatch]):
    """Sequences that ask questions; a list of rows gives a batch."""

    def __init__(self, questions: QueryRows) -> None:
        self.questions = questions

    def __len__(self) -> int:
        return len(self.questions.inputs)

    def __getitem__(self, rows: list[int]) -> LanguageBatch:
        inputs, places, answers = (
            torch.from_numpy(part[rows].astype(np.int64)) for part in self.questions
        )
        return LanguageBatch(inputs, answers, target_positions=places)


class OrderedRows(EpochBatches):
    """The rows of a data set one after the other.

    Args:
        rows: their number.
        batch_size: rows in a batch.
    """

    def __init__(self, rows: int, *, batch_size: int, **options: int) -> None:
        super().__init__(**options)
        self.rows, self.batch_size = rows, batch_size

    def all_batches(self, generator: np.random.Generator) -> list[np.ndarray]:
        return in_batches(np.arange(self.rows), self.batch_size)


class ShuffledRows(OrderedRows):
    """The rows of a data set, in another order each epoch."""

    def all_batches(self, generator: np.random.Generator) -> list[np.ndarray]:
        return in_batches(generator.permutation(self.rows), self.batch_size)
