"""The data module of language modelling."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from attention_zoo.errors import BadInput, UserError, check_positive
from attention_zoo.tasks.data.base import EncodedSplit, PreparedData
from attention_zoo.tasks.data.batches import BlockDataset, JaggedArray, LanguageBatch
from attention_zoo.tasks.data.loader import ResumableLoader
from attention_zoo.tasks.data.samplers import EpochSampler, ShuffledBlockSampler
from attention_zoo.tasks.data.sources.base import SPLITS, Source
from attention_zoo.tasks.data.tokenizers import Tokenizer

LINE_ENDS = re.compile(r"(?<=\S\n)(?=\S)")


class LanguageData(PreparedData):
    """Packed blocks of running text.

    The documents of a split, each bos … eos, follow each other in one stream, which is cut into
    blocks. An evaluation predicts every token of the stream once, in blocks that do not overlap.

    Args:
        context_length: tokens in a block.
        batch_size: blocks in a batch, on each rank.
        sampling: how train blocks are drawn: `ShuffledBlockSampler` or `RandomBlockSampler`.
        documents: number the document of each token, so that attention stays within documents.
        options: of `PreparedData`. The default `probes` are prompts: the first words of the first
            valid documents.
    """

    source: Source[list[str]]
    train: list[str]
    valid: list[str]
    test: list[str]

    def __init__(
        self,
        *,
        context_length: int = 64,
        batch_size: int = 12,
        sampling: Callable[..., EpochSampler] = ShuffledBlockSampler,
        documents: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_positive(**{"data.context_length": context_length, "data.batch_size": batch_size})
        self.context_length = context_length
        self.batch_size = batch_size
        self.sampling = sampling
        self.documents = documents

    def encode_split(self, split: str, items: list[str], tokenizer: Tokenizer) -> EncodedSplit:
        texts = [text for text in items if text.strip()]
        if not texts:
            raise BadInput(f"the {split} split holds no text; give it some.")
        stream = encode_documents(tokenizer, texts)
        return {"lines": texts, "stream": stream}, {
            "documents": len(items),
            "empty": len(items) - len(texts),
            "lines": sum(text.count("\n") + (not text.endswith("\n")) for text in texts),
            "bytes": sum(len(text.encode()) for text in texts),
            "tokens": len(stream),
            "unknown": int((stream == tokenizer.unk_id).sum()),
        }

    def load_values(self, values: dict[str, Any]) -> None:
        self.train, self.valid, self.test = (values[f"{split}_lines"] for split in SPLITS)
        self.streams: dict[str, np.ndarray] = {s: values[f"{s}_stream"] for s in SPLITS}
        prompts = [first_words(text.strip()) for text in self.valid[:3]]
        self.probes, self.probe_references = list(self.chosen_probes or prompts), None

    def example_batch(self) -> LanguageBatch:
        tokens = torch.full((1, self.context_length), self.tokenizer.eos_id)
        return LanguageBatch(tokens, tokens, torch.zeros_like(tokens) if self.documents else None)

    def check_max_length(self, max_length: int) -> None:
        if self.context_length > max_length:
            raise UserError(
                "data.context_length must be at most the model's longest length, got "
                f"{self.context_length} and {max_length}; lower data.context_length."
            )

    def tokens_at_length(self, length: int, split: str) -> int:
        targets = len(self.streams[split]) - 1
        if length > targets:
            raise UserError(
                f"the {split} split is shorter: {targets:,} tokens can be predicted in it."
            )
        return length

    def loaders_at_length(
        self, length: int, split: str, *, stride: int, **ranks: int
    ) -> dict[str, ResumableLoader]:
        """Return the windows that do not overlap, and the `sliding` ones; both have all targets.

        Windows that do not fit into the text are padded. A batch has the same number of tokens at
        every length, but at least one window.
        """
        batch_size = max(1, self.batch_size * self.context_length // length)
        loaders = {}
        for name, step in (("", length), ("sliding", stride)):
            dataset = self.dataset(split, context_length=length, stride=step)
            loaders[name] = self.consecutive_loader(dataset, batch_size, **ranks)
        return loaders

    def dataset(
        self, split: str, *, context_length: int | None = None, stride: int | None = None
    ) -> BlockDataset:
        return BlockDataset(
            self.streams[split],
            context_length=context_length or self.context_length,
            stride=stride,
            documents=self.documents,
        )

    def sampler(self, split: str, **options: int) -> EpochSampler:
        sizes = {"context_length": self.context_length, "batch_size": self.batch_size}
        return self.sampling(len(self.streams[split]), **sizes, **options)


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """Return the token ids of the documents, each bos … eos, one after the other.

    Texts are encoded a line at a time. They are cut only where no token of any tokenizer can span
    the cut: after a line end between characters that are not white space.
    """

    def rows() -> Iterator[list[int]]:
        for text in texts:
            yield [tokenizer.bos_id]
            yield from tokenizer.encode_each(LINE_ENDS.split(text))
            yield [tokenizer.eos_id]

    return JaggedArray.from_rows(rows()).values


def first_words(text: str) -> str:
    """Return the first words of a text, up to 60 characters."""
    return text if len(text) <= 60 else text[:60].rsplit(maxsplit=1)[0]
