"""The data module of diagnostics: language modelling whose answers are right or wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attention_zoo.errors import Unsupported, UserError, check_positive
from attention_zoo.factory import typed_options
from attention_zoo.tasks.data.base import EncodedSplit, PreparedData
from attention_zoo.tasks.data.batches import IGNORE_INDEX, BatchDataset, LanguageBatch
from attention_zoo.tasks.data.diagnostics.base import Diagnostic, QueryRows
from attention_zoo.tasks.data.loader import ResumableLoader
from attention_zoo.tasks.data.samplers import ShuffledRowSampler
from attention_zoo.tasks.data.tokenizers import Tokenizer


@dataclass(eq=False)
class QueryDataset(BatchDataset):
    """The sequences of a diagnostic, with the answers to their queries as targets."""

    rows: QueryRows

    def __len__(self) -> int:
        return len(self.rows.inputs)

    def __getitem__(self, indices: list[int]) -> LanguageBatch:
        inputs, positions, answers = (
            torch.from_numpy(part[indices].astype(np.int64)) for part in self.rows
        )
        return LanguageBatch(inputs, answers, target_positions=positions)


class DiagnosticData(PreparedData):
    """Sequences with queries; only their answers are predicted.

    There is a test set at the training length, one more for each of `test_lengths`, and one for
    each of `test_variants`.

    Args:
        batch_size: sequences in a batch, on each rank.
        test_lengths: other lengths to test at, as the source counts them.
        test_variants: more tests by name, with the options of the source that differ in each.
        answer_tokens: the most tokens of an answer, for the samples.
        options: of `PreparedData`. The tokenizer is that of the source's symbols. The default
            `probes` are prompts: valid sequences up to their first query.
    """

    source: Diagnostic

    @typed_options
    def __init__(
        self,
        *,
        batch_size: int = 128,
        test_lengths: Sequence[int] = (),
        test_variants: Mapping[str, Mapping[str, Any]] | None = None,
        answer_tokens: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        source = self.source
        check_positive(**{"data.batch_size": batch_size, "data.answer_tokens": answer_tokens})
        if len({source.length, *test_lengths}) <= len(test_lengths):
            raise UserError(
                "data.test_lengths must differ from each other and from the length that is trained "
                f"and tested anyway, got {list(test_lengths)} and {source.length}."
            )
        self.batch_size = batch_size
        self.answer_tokens = answer_tokens
        self.extra_tests = {f"test@{n}": source.with_length(n) for n in test_lengths}
        for name, changes in (test_variants or {}).items():
            self.extra_tests[f"test@{name}"] = make_variant(source, name, changes)
        self.test_names = ["test", *self.extra_tests]
        self.cache_options = {
            "others": {name: test.cache_key() for name, test in self.extra_tests.items()}
        }

    def read_splits(self) -> dict[str, QueryRows]:
        tests = {name: source.draw_split("test") for name, source in self.extra_tests.items()}
        return self.source.splits() | tests

    def make_tokenizer(self, train: QueryRows) -> Tokenizer:
        tokenizer = self.tokenizer_factory(self.source.symbols)
        if getattr(tokenizer, "symbols", None) != self.source.symbols:
            raise Unsupported(
                f"{type(self.source).__name__} needs a model of its own symbols, with these "
                f"options {len(self.source.symbols)}, got {tokenizer.vocabulary_size} tokens of "
                "something else; take the data that it was trained on, at any length."
            )
        return tokenizer

    def encode_split(
        self, split: str, items: QueryRows, tokenizer: Tokenizer, folder: Path
    ) -> EncodedSplit:
        return items._asdict(), {
            "sequences": len(items.inputs),
            "tokens": int((items.inputs != tokenizer.pad_id).sum()),
            "questions": int((items.answers != IGNORE_INDEX).sum()),
        }

    def inspect(self, splits: dict[str, Any], report: dict[str, Any]) -> list[str]:
        report["chance_accuracy"] = self.source.chance_accuracy
        return []

    def load_values(self, values: dict[str, Any]) -> None:
        self.rows = {
            split: QueryRows(*(values[f"{split}_{name}"] for name in QueryRows._fields))
            for split in ("train", "valid", *self.test_names)
        }
        self.probes, self.probe_references = self._first_queries(self.rows["valid"])
        if self.chosen_probes is not None:
            self.probes, self.probe_references = list(self.chosen_probes), None
            self.tokenizer.encode_lines(self.probes)  # Refuses unknown symbols before training.

    def _first_queries(self, rows: QueryRows) -> tuple[list[str], list[str]]:
        """Return sequences up to their first query, and the next answers within `answer_tokens`."""
        prompts, references = [], []
        for inputs, positions, answers in zip(*(part[:3] for part in rows), strict=True):
            asked = answers != IGNORE_INDEX
            answer_at = dict(zip(positions[asked].tolist(), answers[asked].tolist(), strict=True))
            first = min(answer_at)
            answer_span = range(first, first + self.answer_tokens)
            answer = [answer_at[position] for position in answer_span if position in answer_at]
            prompts.append(self.tokenizer.decode(inputs[: first + 1]).strip())
            references.append(self.tokenizer.decode(answer).strip())
        return prompts, references

    def example_batch(self) -> LanguageBatch:
        """Return a batch with the width of all batches, and the mean number of queries in a row."""
        inputs, _, answers = self.rows["train"]
        queries = round((answers != IGNORE_INDEX).sum(1).mean())
        tokens = torch.full((1, inputs.shape[1]), self.tokenizer.eos_id)
        return LanguageBatch(
            tokens, tokens[:, :queries], target_positions=torch.arange(queries)[None]
        )

    def check_max_length(self, max_length: int) -> None:
        self.check_option_lengths(max_length)

    def check_option_lengths(self, max_length: int) -> None:
        for name, source in {"train": self.source, **self.extra_tests}.items():
            tokens = source.tokens_per_sequence
            if tokens > max_length:
                option = "data.source.length"
                if name in self.extra_tests:
                    is_length = name.removeprefix("test@").isdecimal()
                    option = "data.test_lengths" if is_length else "data.test_variants"
                raise UserError(
                    f"{option} must make sequences of at most the model's longest length, got "
                    f"{tokens} tokens and {max_length}; lower {option}."
                )

    def tokens_at_length(self, length: int, split: str) -> int:
        return self._source_at_length(length).tokens_per_sequence

    def loaders_at_length(
        self, length: int, split: str, *, stride: int, **ranks: int
    ) -> dict[str, ResumableLoader]:
        """Return sequences of that length. Nothing slides, so `stride` has no effect."""
        source = self._source_at_length(length)
        dataset = QueryDataset(source.draw_split(split))
        batch_size = self.batch_size * self.source.tokens_per_sequence // source.tokens_per_sequence
        return {"": self.consecutive_loader(dataset, max(1, batch_size), **ranks)}

    def _source_at_length(self, length: int) -> Diagnostic:
        # `Copy.with_length` draws strings of that length only, and training those up to it.
        return self.source if length == self.source.length else self.source.with_length(length)

    def dataset(self, split: str) -> QueryDataset:
        return QueryDataset(self.rows[split])

    def sampler(self, split: str, **options: int) -> ShuffledRowSampler:
        rows = len(self.rows[split].inputs)
        return ShuffledRowSampler(rows, batch_size=self.batch_size, **options)

    def test_dataloader(self) -> list[ResumableLoader]:
        return [self.evaluation_loader(name) for name in self.test_names]


def make_variant(source: Diagnostic, name: str, changes: Mapping[str, Any]) -> Diagnostic:
    """Return a source with some options changed. Raise UserError if it cannot be a test."""
    if not name.isidentifier():
        raise UserError(
            "data.test_variants must have names of letters, digits and _, which metrics end with, "
            f"got {name!r}."
        )
    legal = [field.name for field in fields(source)]
    unknown = [option for option in changes if option not in legal]
    if unknown:
        raise UserError(
            f"data.test_variants.{name} must hold options of {type(source).__name__} "
            f"({', '.join(legal)}), got {', '.join(unknown)}."
        )
    variant = replace(source, **changes)
    if variant.symbols != source.symbols[: len(variant.symbols)]:
        raise UserError(
            f"data.test_variants.{name} must have the symbols that are trained on, got "
            f"{dict(changes)}, which makes others."
        )
    return variant
