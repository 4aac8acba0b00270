"""The data module of language modelling."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.data.batches import (
    Blocks,
    EpochBatches,
    LanguageBatch,
    OrderedBlocks,
    ResumableLoader,
    ShuffledBlocks,
    SlidingBlocks,
)
from attention_zoo.tasks.data.module import PreparedData, TokenizerFactory
from attention_zoo.tasks.data.sources.base import SPLITS, Source
from attention_zoo.tasks.data.tokenizers import Tokenizer, check_ids

LINE_ENDS = re.compile(r"(?<=\S\n)(?=\S)")


class LanguageData(PreparedData):
    """Packed blocks of running text.

    The documents of a split, each bos … eos, follow each other in one stream that is cut into
    blocks. An evaluation predicts every token of it once, in blocks that do not overlap.

    Args:
        source: gives the documents.
        tokenizer: makes the tokenizer of the train split.
        cache_dir: where prepared data are kept.
        context_length: tokens in a block.
        batch_size: blocks in a batch, on each rank.
        sampling: how train blocks are drawn: `ShuffledBlocks` or `RandomBlocks`.
        documents: give the number of each token's document, so that attention stays within
            documents.
        root: folder of files to read `source` from.
        seed: of the draw of the blocks.
        num_workers: processes that prepare batches.
        probes: prompts to continue during training; by default the beginnings of valid documents.
    """

    source: Source[str]
    train: list[str]
    valid: list[str]
    test: list[str]

    def __init__(
        self,
        *,
        source: Source[str],
        tokenizer: TokenizerFactory,
        cache_dir: str | Path,
        context_length: int = 64,
        batch_size: int = 12,
        sampling: Callable[..., EpochBatches] = ShuffledBlocks,
        documents: bool = False,
        root: str | Path | None = None,
        seed: int = 0,
        num_workers: int = 0,
        probes: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            source=source if root is None else source.in_folder(root),
            tokenizer=tokenizer,
            cache_dir=cache_dir,
            seed=seed,
            num_workers=num_workers,
        )
        for name, value in (("context_length", context_length), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"data.{name} must be at least 1, got {value}.")
        self.context_length = context_length
        self.batch_size = batch_size
        self.sampling = sampling
        self.documents = documents
        self._chosen_probes = probes

    def options(self) -> dict[str, Any]:
        return {}

    def build(self) -> dict[str, Any]:
        splits = self.source.splits()
        tokenizer = self.tokenizer_factory(splits["train"])
        report: dict[str, Any] = {"source": self.source.key(), "notes": list(self.source.notes)}
        values: dict[str, Any] = {"tokenizer": tokenizer.state(), "report": report}
        for split in SPLITS:
            texts = [text for text in splits[split] if text.strip()]
            if not texts:
                raise BadInput(f"the {split} split holds no text; give it some.")
            stream = stream_of(tokenizer, texts)
            values[f"{split}_lines"] = texts
            values[f"{split}_stream"] = stream
            report[split] = {
                "documents": len(splits[split]),
                "empty": len(splits[split]) - len(texts),
                "lines": sum(text.count("\n") + (not text.endswith("\n")) for text in texts),
                "bytes": sum(len(text.encode()) for text in texts),
                "tokens": len(stream),
                "unknown_name_message": int((stream == tokenizer.unk_id).sum()),
            }
        return values

    def unpack(self, values: dict[str, Any]) -> None:
        self.blocks: dict[str, Blocks] = {}
        for split in SPLITS:
            setattr(self, split, values[f"{split}_lines"])
            stream = values[f"{split}_stream"]
            check_ids(stream, self.tokenizer.vocabulary_size, place=f"the {split} split")
            self.blocks[split] = Blocks(
                stream, context_length=self.context_length, documents=self.documents
            )
        self.probes = list(
            self._chosen_probes or [beginning(text.strip()) for text in self.valid[:3]]
        )
        self.probe_references = None

    def example(self) -> LanguageBatch:
        tokens = torch.full((1, self.context_length), self.tokenizer.eos_id)
        return LanguageBatch(tokens, tokens, torch.zeros_like(tokens) if self.documents else None)

    def refuse_longer_than(self, limit: int) -> None:
        if self.context_length > limit:
            raise UserError(
                f"data.context_length must be at most the model's longest length, got {self.context_length} and "
                f"{limit}; lower data.context_length."
            )

    def tokens_at(self, length: int, split: str) -> int:
        predicted = len(self.blocks[split].stream) - 1
        if length > predicted:
            raise UserError(
                f"the {split} split is shorter: {predicted:,} tokens can be predicted in it."
            )
        return length

    def tests_at(
        self, length: int, split: str, *, stride: int, rank: int, world_size: int
    ) -> dict[str, ResumableLoader]:
        """By windows that do not overlap, and by `sliding` ones; both predict the same tokens.

        A window begins with the token that the one before it predicted last, so the first of its
        targets has one token before it. The last window is as long as the text is. A batch has as
        many tokens at every length, as long as that is at least a window.
        """
        stream = self.blocks[split].stream
        rows = max(1, self.batch_size * self.context_length // length)
        plain = Blocks(stream, context_length=length, documents=self.documents)
        sliding = SlidingBlocks(
            stream, context_length=length, stride=stride, documents=self.documents
        )
        # A window is needed if one of the tokens it scores is there.
        tokens = {"": len(stream), "sliding": len(stream) - (length - stride)}
        steps = {"": length, "sliding": stride}
        return {
            how: ResumableLoader(
                blocks,
                OrderedBlocks(
                    tokens[how],
                    context_length=steps[how],
                    batch_size=rows,
                    rank=rank,
                    world_size=world_size,
                ),
                num_workers=self.num_workers,
            )
            for how, blocks in (("", plain), ("sliding", sliding))
        }

    def train_dataloader(self) -> ResumableLoader:
        blocks = self.blocks["train"]
        sampler = self.sampling(
            len(blocks),
            context_length=self.context_length,
            batch_size=self.batch_size,
            seed=self.seed,
            **self.share(),
        )
        return ResumableLoader(blocks, sampler, num_workers=self.num_workers)

    def val_dataloader(self) -> ResumableLoader:
        return self._evaluation("valid")

    def test_dataloader(self) -> ResumableLoader:
        return self._evaluation("test")

    def _evaluation(self, split: str) -> ResumableLoader:
        blocks = self.blocks[split]
        sampler = OrderedBlocks(
            len(blocks),
            context_length=self.context_length,
            batch_size=self.batch_size,
            **self.share(),
        )
        return ResumableLoader(blocks, sampler, num_workers=self.num_workers)


def stream_of(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """Token ids of the documents, each bos … eos, one after the other.

    Encoded a line at a time, cut where no token of any tokenizer reaches across: after a line end
    between characters that are not white space.
    """
    parts: list[np.ndarray] = []
    for text in texts:
        lines = LINE_ENDS.split(text)
        parts.append(np.array([tokenizer.bos_id], dtype=np.int32))
        for start in range(0, len(lines), 10_000):
            rows = tokenizer.encode_lines(lines[start : start + 10_000])
            parts += [np.asarray(row, dtype=np.int32) for row in rows]
        parts.append(np.array([tokenizer.eos_id], dtype=np.int32))
    return np.concatenate(parts)


def beginning(text: str, *, characters: int = 60) -> str:
    """The first words of a text."""
    return text[:characters].rsplit(maxsplit=1)[0] if len(text) > characters else text
