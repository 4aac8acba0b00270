"""The data module of translation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.data.batches import (
    JaggedArray,
    OrderedTokenBudgetBatches,
    Pairs,
    ResumableLoader,
    TokenBudgetBatches,
    TranslationBatch,
)
from attention_zoo.tasks.data.module import PreparedData, TokenizerFactory
from attention_zoo.tasks.data.sources.base import SPLITS, Pair, Source
from attention_zoo.tasks.data.tokenizers import Tokenizer, check_ids


class TranslationData(PreparedData):
    """Batches of sentence pairs by token budget.

    Lines that are empty on a side, or longer than `max_tokens` on one, are left out of the train
    split and counted in `report`; the other splits keep every line.

    Args:
        source: gives the pairs.
        tokenizer: makes the joint tokenizer of the train split's lines.
        cache_dir: where prepared data are kept.
        tokens_per_batch: rows x longest row of a batch, at most, on each side and rank.
        max_tokens: of a train line, special tokens included.
        root: folder of files to read `source` from.
        seed: of the order of the batches.
        num_workers: processes that prepare batches.
        length_jitter: of the bucketing, in tokens (see `TokenBudgetBatches`).
        probes: source lines to look at during training; by default the source's own, else the
            first lines of the valid split.
    """

    source: Source[Pair]
    train: list[Pair]
    valid: list[Pair]
    test: list[Pair]

    def __init__(
        self,
        *,
        source: Source[Pair],
        tokenizer: TokenizerFactory,
        cache_dir: str | Path,
        tokens_per_batch: int = 2048,
        max_tokens: int = 128,
        root: str | Path | None = None,
        seed: int = 0,
        num_workers: int = 0,
        length_jitter: float = 2.0,
        probes: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            source=source if root is None else source.in_folder(root),
            tokenizer=tokenizer,
            cache_dir=cache_dir,
            seed=seed,
            num_workers=num_workers,
        )
        if not 3 <= max_tokens <= tokens_per_batch:
            raise UserError(
                "data.max_tokens must lie between 3 and data.tokens_per_batch, got "
                f"max_tokens={max_tokens} and tokens_per_batch={tokens_per_batch}."
            )
        self.tokens_per_batch = tokens_per_batch
        self.max_tokens = max_tokens
        self.length_jitter = length_jitter
        self._chosen_probes = probes

    def options(self) -> dict[str, Any]:
        return {"max_tokens": self.max_tokens}

    def build(self) -> dict[str, Any]:
        splits = self.source.splits()
        tokenizer = self.tokenizer_factory(line for pair in splits["train"] for line in pair)
        report: dict[str, Any] = {"source": self.source.key(), "notes": list(self.source.notes)}
        values: dict[str, Any] = {
            "tokenizer": tokenizer.state(),
            "report": report,
            "probes": self.source.probes(),
        }
        for split in SPLITS:
            pairs = splits[split]
            if not pairs:
                raise BadInput(f"the {split} split holds no line; give it at least one.")
            source = encode([source for source, _ in pairs], tokenizer, first=[])
            target = encode([target for _, target in pairs], tokenizer, first=[tokenizer.bos_id])
            limit = self.max_tokens if split == "train" else None
            kept, report[split] = select(pairs, source, target, limit=limit)
            values[f"{split}_lines"] = pairs
            values[f"{split}_index"] = kept
            for side, rows in (("source", source), ("target", target)):
                values[f"{split}_{side}"], values[f"{split}_{side}_starts"] = rows.take(kept)
        return values

    def unpack(self, values: dict[str, Any]) -> None:
        self.pairs: dict[str, Pairs] = {}
        for split in SPLITS:
            setattr(self, split, [(source, target) for source, target in values[f"{split}_lines"]])
            source, target = (
                JaggedArray(values[f"{split}_{side}"], values[f"{split}_{side}_starts"])
                for side in ("source", "target")
            )
            for side in (source, target):
                check_ids(side.values, self.tokenizer.vocabulary_size, place=f"the {split} split")
            self.pairs[split] = Pairs(source, target, values[f"{split}_index"])
        self._set_probes([(source, target) for source, target in values["probes"]])

    def _set_probes(self, of_source: list[Pair]) -> None:
        if self._chosen_probes is None:
            chosen = of_source or [pair for pair in self.valid if all(pair)][:3]
            self.probes = [source for source, _ in chosen]
            self.probe_references = [target for _, target in chosen]
            return
        known = dict([*self.test, *self.valid, *of_source])
        self.probes = list(self._chosen_probes)
        self.probe_references = None
        if all(probe in known for probe in self.probes):
            self.probe_references = [known[probe] for probe in self.probes]

    def example(self) -> TranslationBatch:
        pairs = self.pairs["train"]
        source, target = (
            torch.full((1, round(side.lengths().mean())), self.tokenizer.eos_id)
            for side in (pairs.source, pairs.target)
        )
        return TranslationBatch(source, target, torch.zeros(1, dtype=torch.long))

    def refuse_longer_than(self, limit: int) -> None:
        """For a model of at most `limit` positions on each side, special tokens included.

        Raises BadInput for the first longer line of any split, with its place and the remedy.
        """
        for split in SPLITS:
            pairs = self.pairs[split]
            lengths = np.maximum(pairs.source.lengths(), pairs.target.lengths())
            if lengths.max() <= limit:
                continue
            row = int(np.argmax(lengths > limit))
            self.source.splits()  # a source that came from the cache has not seen its files' lines
            remedy = (
                f"lower data.max_tokens to {limit}"
                if split == "train"
                else "shorten the line, or take a positional encoding without a longest length"
            )
            raise BadInput(
                f"{self.source.place(split, int(pairs.index[row]))}: {lengths[row]} tokens, and "
                f"the model takes {limit}; {remedy}."
            )

    def train_dataloader(self) -> ResumableLoader:
        pairs = self.pairs["train"]
        sampler = TokenBudgetBatches(
            pairs.source.lengths(),
            pairs.target.lengths(),
            tokens_per_batch=self.tokens_per_batch,
            length_jitter=self.length_jitter,
            seed=self.seed,
            **self.share(),
        )
        return ResumableLoader(pairs, sampler, num_workers=self.num_workers)

    def val_dataloader(self) -> ResumableLoader:
        return self._evaluation("valid")

    def test_dataloader(self) -> ResumableLoader:
        return self._evaluation("test")

    def _evaluation(self, split: str) -> ResumableLoader:
        pairs = self.pairs[split]
        sampler = OrderedTokenBudgetBatches(
            pairs.source.lengths(),
            pairs.target.lengths(),
            tokens_per_batch=self.tokens_per_batch,
            **self.share(),
        )
        return ResumableLoader(pairs, sampler, num_workers=self.num_workers)


def encode(lines: list[str], tokenizer: Tokenizer, *, first: list[int]) -> JaggedArray:
    """Token ids of lines: `first`, the line, eos. A part at a time, as lists take much memory."""
    parts = (lines[start : start + 10_000] for start in range(0, len(lines), 10_000))
    last = tokenizer.eos_id
    return JaggedArray.of(
        [*first, *ids, last] for part in parts for ids in tokenizer.encode_lines(part)
    )


def select(
    pairs: list[Pair], source: JaggedArray, target: JaggedArray, *, limit: int | None
) -> tuple[np.ndarray, dict[str, int]]:
    """The places to keep, and what to report: with a limit, empty and longer lines are left out.

    Raises BadInput where nothing is left.
    """
    empty = np.array([not (source.strip() and target.strip()) for source, target in pairs])
    lengths = np.maximum(source.lengths(), target.lengths())
    over_long = np.zeros_like(empty) if limit is None else (lengths > limit) & ~empty
    kept = np.arange(len(pairs)) if limit is None else np.flatnonzero(~empty & ~over_long)
    if not len(kept):
        raise BadInput(
            f"no train line is left: of {len(pairs)}, {empty.sum()} are empty on a side and "
            f"{over_long.sum()} have more than data.max_tokens={limit} tokens; raise that."
        )
    return kept, {
        "lines": len(pairs),
        "empty": int(empty.sum()),
        "over_long": int(over_long.sum()),
        "kept": len(kept),
        "source_tokens": int(source.lengths()[kept].sum()),
        "target_tokens": int(target.lengths()[kept].sum()),
        "longest": int(lengths[kept].max()),
    }
