"""The data module of language modelling."""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attention_zoo.errors import BadInput, Unsupported, UserError, check_positive
from attention_zoo.factory import typed_options
from attention_zoo.tasks.data.base import EncodedSplit, PreparedData
from attention_zoo.tasks.data.batches import BlockDataset, LanguageBatch
from attention_zoo.tasks.data.cache import ArrayWriter
from attention_zoo.tasks.data.inspection import TextInspection
from attention_zoo.tasks.data.loader import ResumableLoader
from attention_zoo.tasks.data.samplers import EpochSampler, ShuffledBlockSampler
from attention_zoo.tasks.data.sources.base import SPLITS, Source, is_pair
from attention_zoo.tasks.data.tokenizers import Tokenizer

# No token of any tokenizer spans these: before a single space, and after a single line end, between
# characters that are not white space.
TOKEN_BOUNDARY = re.compile(r"(?<=\S)(?= \S)|(?<=\S\n)(?=\S)")
PIECE_SIZE = 1 << 16  # characters that are encoded at once
PIECES = 16  # that are encoded in parallel

# The text of a document, whole or in consecutive parts.
Document = str | Iterable[str]


class LanguageData(PreparedData):
    """Packed blocks of running text.

    The documents of a split, each bos … eos, follow each other in one stream, which is cut into
    blocks. An evaluation predicts every token of the stream once, in blocks that do not overlap.
    The stream lies on disk, and documents may come in parts: a text may be larger than the memory.

    Args:
        context_length: tokens in a block.
        batch_size: blocks in a batch, on each rank.
        sampling: how train blocks are drawn: `ShuffledBlockSampler` or `RandomBlockSampler`.
        documents: number the document of each token, so that attention stays within documents.
        options: of `PreparedData`. The default `probes` are prompts: the first words of the first
            valid documents.
    """

    source: Source[Iterable[Document]]

    @typed_options
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

    def make_tokenizer(self, train: Iterable[Document]) -> Tokenizer:
        return self.tokenizer_factory(piece for document in train for piece in pieces(document))

    def encode_split(
        self, split: str, items: Iterable[Document], tokenizer: Tokenizer, folder: Path
    ) -> EncodedSplit:
        counts = dict.fromkeys(("documents", "empty", "lines", "bytes", "tokens", "unknown"), 0)
        prompts: list[str] = []
        path = folder / f"{split}_stream.npy"
        with ArrayWriter(path, max_value=tokenizer.vocabulary_size) as stream:
            for document in items:
                counts["documents"] += 1
                if not any(part.strip() for part in parts(document)):
                    counts["empty"] += 1
                    continue
                if len(prompts) < 3:
                    prompts.append(first_words(document))
                for tokens in encode_document(tokenizer, count_text(pieces(document), counts)):
                    stream.write(tokens)
                    counts["unknown"] += int((tokens == tokenizer.unk_id).sum())
        counts["tokens"] = stream.length
        if not stream.length:
            raise BadInput(f"the {split} split holds no text; give it some.")
        return {"prompts": prompts}, counts

    def inspect(self, splits: dict[str, Iterable[Document]], report: dict[str, Any]) -> list[str]:
        inspection = TextInspection()
        for split in reversed(SPLITS):
            for document in splits[split]:
                for text in pieces(document):
                    inspection.add_text(split, text)
            inspection.add_unknown(split, report[split]["unknown"], report[split]["tokens"])
            report[split] |= inspection.split_counts(split)
        return inspection.warnings()

    def load_values(self, values: dict[str, Any]) -> None:
        self.streams: dict[str, np.ndarray] = {
            split: values[f"{split}_stream"] for split in SPLITS if f"{split}_stream" in values
        }
        self.probes = list(self.chosen_probes or values.get("valid_prompts", ()))
        self.probe_references = None

    def example_batch(self) -> LanguageBatch:
        tokens = torch.full((1, self.context_length), self.tokenizer.eos_id)
        return LanguageBatch(tokens, tokens, torch.zeros_like(tokens) if self.documents else None)

    def check_max_length(self, max_length: int) -> None:
        self.check_option_lengths(max_length)

    def check_option_lengths(self, max_length: int) -> None:
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


def parts(document: Document) -> Iterable[str]:
    """Return the parts of a document. Raise Unsupported for a pair of texts."""
    if is_pair(document):
        raise Unsupported(
            "a language model needs a source of texts, got a pair (source, target); take a source "
            "of texts, or task=translation."
        )
    return [document] if isinstance(document, str) else document


def pieces(document: Document) -> Iterator[str]:
    """Yield a document in pieces that are encoded one by one as they are as a whole.

    They have `PIECE_SIZE` characters, and go on to the next boundary that no token can span.
    """
    rest = ""
    for part in parts(document):
        rest += part
        start = 0
        while boundary := TOKEN_BOUNDARY.search(rest, start + PIECE_SIZE):
            yield rest[start : boundary.start()]
            start = boundary.start()
        rest = rest[start:]
    if rest:
        yield rest


def count_text(texts: Iterable[str], counts: dict[str, int]) -> Iterator[str]:
    """Yield the pieces of a document, and add up its lines and bytes."""
    for text in texts:
        counts["lines"] += text.count("\n")
        counts["bytes"] += len(text.encode())
        yield text
    counts["lines"] += not text.endswith("\n")


def encode_document(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """Yield the token ids of a document in arrays: bos, those of its pieces, eos."""
    yield np.array([tokenizer.bos_id])
    texts = iter(texts)
    while batch := list(islice(texts, PIECES)):
        for ids in tokenizer.encode_lines(batch):
            yield np.array(ids)
    yield np.array([tokenizer.eos_id])


def first_words(document: Document) -> str:
    """Return the first words of a document, up to 60 characters."""
    text = ""
    for part in parts(document):
        text += part
        if len(text.lstrip()) > 60:
            break
    text = text.strip()
    return text if len(text) <= 60 else text[:60].rsplit(maxsplit=1)[0]
