"""The data module of translation."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attention_zoo.errors import (
    BadInput,
    Unsupported,
    UserError,
    check_not_negative,
    short_repr,
)
from attention_zoo.factory import typed_options
from attention_zoo.tasks.data.base import EncodedSplit, PreparedData
from attention_zoo.tasks.data.batches import JaggedArray, PairDataset, TranslationBatch
from attention_zoo.tasks.data.inspection import PairInspection
from attention_zoo.tasks.data.loader import ResumableLoader
from attention_zoo.tasks.data.samplers import FixedBatchSampler, TokenBudgetSampler
from attention_zoo.tasks.data.sources.base import SPLITS, Pair, Source, is_pair
from attention_zoo.tasks.data.tokenizers import BOS, EOS, UNK, Tokenizer

SUBWORD_MARKS = re.compile(r"\S@@(?: |$)|▁")
SUBWORD_END = re.compile(r"@@(?: |$)")
# A line of more times `max_tokens` is translated up to there: the model has seen nothing like it,
# and decoding would take minutes.
LENGTH_FACTOR = 8
# Of the train lines, from which on the text is one of subwords.
MIN_SUBWORDS = 0.1


class TranslationData(PreparedData):
    """Batches of sentence pairs by token budget.

    The train split leaves out lines that are empty on a side, or longer than `max_tokens` on one,
    and `report` counts them. The other splits keep every line.

    Args:
        tokens_per_batch: the most rows x longest row of a batch, on each side and rank.
        max_tokens: the most tokens of a train line, special tokens included.
        length_jitter: of the bucketing, in tokens (see `TokenBudgetSampler`).
        options: of `PreparedData`. The tokenizer is a joint one of both languages. The default
            `probes` are the source's own, else the first lines of the valid split.
    """

    source: Source[list[Pair]]
    train: list[Pair]
    valid: list[Pair]
    test: list[Pair]

    @typed_options
    def __init__(
        self,
        *,
        tokens_per_batch: int = 2048,
        max_tokens: int = 128,
        length_jitter: float = 2.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not 3 <= max_tokens <= tokens_per_batch:
            raise UserError(
                "data.max_tokens must lie between 3 and data.tokens_per_batch, got "
                f"max_tokens={max_tokens} and tokens_per_batch={tokens_per_batch}."
            )
        check_not_negative(**{"data.length_jitter": length_jitter})
        self.tokens_per_batch = tokens_per_batch
        self.max_tokens = max_tokens
        self.cache_options = {"max_tokens": max_tokens}
        self.length_jitter = length_jitter

    def read_splits(self) -> dict[str, list[Pair]]:
        """Return the pairs of all splits; where train is one of subwords, with these joined."""
        splits = super().read_splits()
        for split, items in splits.items():
            if items and not is_pair(items[0]):
                raise Unsupported(
                    "a translation needs a source of pairs (source, target), got "
                    f"{type(self.source).__name__}, whose {split} split has "
                    f"{short_repr(items[0])}; take a source of pairs, or task=language_modeling."
                )
        pairs = next(iter(splits.values()))
        marked = sum(bool(SUBWORD_MARKS.search(f"{source} {target}")) for source, target in pairs)
        if marked <= MIN_SUBWORDS * len(pairs):
            return splits
        note = "the lines are in subwords, which were joined: outputs and scores are of words"
        self.source.notes = [*self.source.notes, note]
        return {
            split: [(join_subwords(source), join_subwords(target)) for source, target in pairs]
            for split, pairs in splits.items()
        }

    def build_values(self, folder: Path) -> dict[str, Any]:
        return {**super().build_values(folder), "probes": self.source.probes()}

    def make_tokenizer(self, train: list[Pair]) -> Tokenizer:
        return self.tokenizer_factory(line for pair in train for line in pair)

    def encode_split(
        self, split: str, items: list[Pair], tokenizer: Tokenizer, folder: Path
    ) -> EncodedSplit:
        if not items:
            raise BadInput(f"the {split} split holds no line; give it at least one.")
        sources, targets = ([pair[side] for pair in items] for side in (0, 1))
        source = JaggedArray.from_rows([*ids, EOS] for ids in tokenizer.encode_each(sources))
        target = JaggedArray.from_rows([BOS, *ids, EOS] for ids in tokenizer.encode_each(targets))
        max_tokens = self.max_tokens if split == "train" else None
        rows, counts = select_rows(items, source, target, max_tokens=max_tokens)
        counts["unknown"] = sum(int((side.values == UNK).sum()) for side in (source, target))
        values: dict[str, Any] = {"lines": items, "index": rows}
        for side, encoded in (("source", source), ("target", target)):
            values[side], values[f"{side}_starts"] = JaggedArray.from_rows(map(encoded.row, rows))
        return values, counts

    def inspect(self, splits: dict[str, list[Pair]], report: dict[str, Any]) -> list[str]:
        inspection = PairInspection()
        inspection.add_pairs(splits)
        for split in SPLITS:
            counts = report[split]
            inspection.counts[split] |= {name: counts[name] for name in ("empty", "over_long")}
            tokens = counts["source_tokens"] + counts["target_tokens"]
            inspection.add_unknown(split, counts["unknown"], tokens)
            if split != "train" and counts["longest"] > max_source_tokens(self.max_tokens):
                inspection.sentences.append(
                    f"long lines: one of the {split} split has {counts['longest']:,} tokens; the "
                    f"model translates the first {max_source_tokens(self.max_tokens):,} of a line "
                    f"({LENGTH_FACTOR} * data.max_tokens); give it a sentence a line"
                )
            report[split] = counts | inspection.split_counts(split)
        inspection.warn("empty", "see whether the lines are aligned", min_share=0.05)
        remedy = (
            f"data.max_tokens={self.max_tokens} leaves them out of train; split them or raise it"
        )
        inspection.warn("over_long", remedy, min_share=0.05)
        return inspection.warnings()

    def load_values(self, values: dict[str, Any]) -> None:
        self.train, self.valid, self.test = (
            [(source, target) for source, target in values.get(f"{split}_lines", ())]
            for split in SPLITS
        )
        self.pairs: dict[str, PairDataset] = {}
        for split in (split for split in SPLITS if f"{split}_lines" in values):
            source, target = (
                JaggedArray(values[f"{split}_{side}"], values[f"{split}_{side}_starts"])
                for side in ("source", "target")
            )
            self.pairs[split] = PairDataset(source, target, values[f"{split}_index"])
        self._set_probes([(source, target) for source, target in values["probes"]])

    def _set_probes(self, source_probes: list[Pair]) -> None:
        if self.chosen_probes is None:
            pairs = source_probes or [pair for pair in self.valid if all(pair)][:3]
            self.probes = [source for source, _ in pairs]
            self.probe_references = [target for _, target in pairs]
            return
        references = dict([*self.test, *self.valid, *source_probes])
        self.probes = list(self.chosen_probes)
        self.probe_references = None
        if all(probe in references for probe in self.probes):
            self.probe_references = [references[probe] for probe in self.probes]

    def example_batch(self) -> TranslationBatch:
        pairs = self.pairs["train"]
        source, target = (
            torch.full((1, round(side.lengths().mean())), self.tokenizer.eos_id)
            for side in (pairs.source, pairs.target)
        )
        return TranslationBatch(source, target, torch.zeros(1, dtype=torch.long))

    def check_max_length(self, max_length: int) -> None:
        """Raise BadInput for the first line, on either side, that is longer than `max_length`."""
        for split, pairs in self.pairs.items():
            lengths = np.maximum(pairs.source.lengths(), pairs.target.lengths())
            if lengths.max() <= max_length:
                continue
            row = int(np.argmax(lengths > max_length))
            remedy = (
                f"lower data.max_tokens to {max_length}"
                if split == "train"
                else "shorten the line, or take a positional encoding without a longest length"
            )
            raise BadInput(
                f"{self.source.location(split, int(pairs.index[row]))}: {lengths[row]} tokens, and "
                f"the model takes {max_length}; {remedy}."
            )

    def dataset(self, split: str) -> PairDataset:
        return self.pairs[split]

    def sampler(self, split: str, **options: int) -> TokenBudgetSampler:
        pairs = self.pairs[split]
        return TokenBudgetSampler(
            pairs.source.lengths(),
            pairs.target.lengths(),
            tokens_per_batch=self.tokens_per_batch,
            length_jitter=self.length_jitter,
            **options,
        )

    def evaluation_loader(self, split: str) -> ResumableLoader:
        batches = self.sampler(split).batches_by_length()
        sampler = FixedBatchSampler(batches, **self.rank_and_world_size())
        return ResumableLoader(self.pairs[split], sampler, num_workers=self.num_workers)


def select_rows(
    pairs: list[Pair], source: JaggedArray, target: JaggedArray, *, max_tokens: int | None
) -> tuple[np.ndarray, dict[str, int]]:
    """Return the indices of the pairs to use, and counts for the report.

    With `max_tokens`, lines that are empty or longer are left out. Raise BadInput if none is left.
    """
    empty = np.array([not (source.strip() and target.strip()) for source, target in pairs])
    lengths = np.maximum(source.lengths(), target.lengths())
    over_long = np.zeros_like(empty) if max_tokens is None else (lengths > max_tokens) & ~empty
    rows = np.arange(len(pairs)) if max_tokens is None else np.flatnonzero(~empty & ~over_long)
    if not len(rows):
        raise BadInput(
            f"no train line is left: of {len(pairs)}, {empty.sum()} are empty on a side and "
            f"{over_long.sum()} have more than data.max_tokens={max_tokens} tokens; raise that."
        )
    return rows, {
        "lines": len(pairs),
        "empty": int(empty.sum()),
        "over_long": int(over_long.sum()),
        "kept": len(rows),
        "source_tokens": int(source.lengths()[rows].sum()),
        "target_tokens": int(target.lengths()[rows].sum()),
        "longest": int(lengths[rows].max()),
    }


def max_source_tokens(max_tokens: int) -> int:
    """Return the most tokens of a line that are translated."""
    return LENGTH_FACTOR * max_tokens


def join_subwords(line: str) -> str:
    """Return the words of a line of subword-nmt (`low@@ er`) or SentencePiece (`▁low er`)."""
    if "▁" in line:
        return line.replace(" ", "").replace("▁", " ").strip()
    return SUBWORD_END.sub("", line)
