"""Batches: how samples are grouped, ordered, padded and shared among ranks.

All orders are a function of seed and epoch alone, and of the same list of batches for every world
size: rank r of n takes batches r, r + n, … of that list. Where its length is not a multiple of n,
batches are split in two until it is, so that all ranks take as many steps and every sample is
taken once.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.tokenizers import BOS, PAD

IGNORE_INDEX = -100  # torch's cross-entropy skips this target


class TranslationBatch(NamedTuple):
    """Sentence pairs.

    source: [b s] long, right-padded with 0; ends with eos.
    target: [b t] long, right-padded with 0; bos … eos.
    index: [b] long, the place of each pair in its split.
    """

    source: Tensor
    target: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


class LanguageBatch(NamedTuple):
    """Blocks of running text, or sequences with queries at some positions.

    inputs: [b t] long.
    targets: [b t] long, the token after each input, or [b a] long, the answer at each of
        `target_positions`; -100 where nothing is to be predicted.
    segment_ids: [b t] long, the number of the document within the block, or None where attention may
        cross documents.
    target_positions: [b a] long, or None where all tokens are to be predicted.
    """

    inputs: Tensor
    targets: Tensor
    segment_ids: Tensor | None = None
    target_positions: Tensor | None = None


class JaggedArray(NamedTuple):
    """Rows of different lengths, one after the other: row i is values[starts[i]:starts[i + 1]]."""

    values: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[Sequence[int] | np.ndarray]) -> "JaggedArray":
        arrays = [np.asarray(row, dtype=np.int32) for row in rows]
        values = np.concatenate([np.zeros(0, np.int32), *arrays])
        starts = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
        return cls(values, starts)

    def take(self, rows: np.ndarray) -> "JaggedArray":
        """These rows, in this order."""
        return JaggedArray.of(self.values[self.starts[row] : self.starts[row + 1]] for row in rows)

    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def row(self, index: int) -> Tensor:
        """Row `index` as [t] long."""
        values = self.values[self.starts[index] : self.starts[index + 1]]
        return torch.from_numpy(values.astype(np.int64))


class Pairs(Dataset[TranslationBatch]):
    """Encoded sentence pairs; a list of places gives a batch.

    Args:
        source: rows that end with eos.
        target: rows bos … eos.
        index: the place of each pair in its split.
    """

    def __init__(self, source: JaggedArray, target: JaggedArray, index: np.ndarray) -> None:
        self.source, self.target = source, target
        self.index = torch.from_numpy(index)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: list[int]) -> TranslationBatch:
        source, target = (
            pad_sequence([side.row(row) for row in rows], batch_first=True, padding_value=PAD)
            for side in (self.source, self.target)
        )
        return TranslationBatch(source, target, self.index[rows])


class Blocks(Dataset[LanguageBatch]):
    """A stream of tokens; a list of starts gives a batch of blocks.

    Nothing is to be predicted after the end of a document (its successor's bos), nor after the
    end of the stream.

    Args:
        stream: bos … eos of one document after the other, [n].
        context_length: tokens in a block.
        documents: number the documents within a block, so that attention can stay in them.
    """

    def __init__(self, stream: np.ndarray, *, context_length: int, documents: bool = False) -> None:
        self.stream = stream
        self.context_length = context_length
        self.documents = documents

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, starts: list[int]) -> LanguageBatch:
        places = np.asarray(starts)[:, None] + np.arange(self.context_length + 1)
        tokens = self.stream[np.minimum(places, len(self.stream) - 1)].astype(np.int64)
        tokens[places >= len(self.stream)] = PAD
        window = torch.from_numpy(tokens)
        inputs, targets = window[:, :-1], window[:, 1:].clone()
        targets[(targets == PAD) | (targets == BOS)] = IGNORE_INDEX
        segment_ids = (inputs == BOS).long().cumsum(1) if self.documents else None
        return LanguageBatch(inputs.contiguous(), targets, segment_ids)


class SlidingBlocks(Blocks):
    """Blocks of which the last `stride` tokens are to be predicted, and in the first one all.

    From starts 0, stride, 2 · stride, … every token after the first is a target once, and one that
    is not in the first block has at least context + 1 - stride tokens before it in its block.
    """

    def __init__(
        self, stream: np.ndarray, *, context_length: int, stride: int, documents: bool = False
    ) -> None:
        super().__init__(stream, context_length=context_length, documents=documents)
        self.stride = stride

    def __getitem__(self, starts: list[int]) -> LanguageBatch:
        batch = super().__getitem__(starts)
        later = torch.tensor(starts)[:, None] > 0
        batch.targets[
            later & (torch.arange(self.context_length) < self.context_length - self.stride)
        ] = IGNORE_INDEX
        return batch


class EpochBatches(Sampler[list[int]], ABC):
    """Batches of places in a data set, in the order of an epoch.

    Args:
        seed: of all randomness, together with the epoch.
        rank, world_size: whose batches to give.
    """

    def __init__(self, *, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = 0
        self.skip = 0  # batches of the next pass to leave out: those that a resumed run has had
        self._length: int | None = None

    @abstractmethod
    def all_batches(self, generator: np.random.Generator) -> list[np.ndarray]:
        """The batches of an epoch; as many of the same sizes for every generator."""

    def divided(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch, of all ranks."""
        generator = np.random.default_rng([self.seed, epoch])
        return divide(self.all_batches(generator), self.world_size)

    def batches(self) -> list[np.ndarray]:
        """This rank's batches of the present epoch."""
        return self.divided(self.epoch)[self.rank :: self.world_size]

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self._length is None:
            self._length = len(self.batches())
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        skip, self.skip = self.skip, 0
        for batch in self.batches()[skip:]:
            yield batch.tolist()


def divide(batches: list[np.ndarray], world_size: int) -> list[np.ndarray]:
    """Halves the largest batches until their number is a multiple of world_size.

    The halves follow each other. Raises UserError where there are fewer samples than ranks.
    """
    missing = -len(batches) % world_size
    while missing:
        place = max(range(len(batches)), key=lambda i: len(batches[i]))
        batch = batches[place]
        if len(batch) < 2:
            raise UserError(
                f"a split must have a sample for each process, got {len(batches)} for "
                f"{world_size} processes; lower trainer.devices."
            )
        half = (len(batch) + 1) // 2
        batches = [*batches[:place], batch[:half], batch[half:], *batches[place + 1 :]]
        missing -= 1
    return batches


class TokenBudgetBatches(EpochBatches):
    """Pairs of like length, padded to at most `tokens_per_batch` tokens on the longer side.

    Pairs are ordered by the longer of their two sides, then by the shorter one with noise; ties
    are drawn anew each epoch. The order of the longer sides is the same in all epochs, and so are
    the sizes of the batches and their number, while their members and their order change.

    Args:
        source_lengths, target_lengths: tokens of each pair, special tokens included, [n].
        tokens_per_batch: at most rows x longest row, for each side. A longer pair is a batch of
            its own.
        length_jitter: standard deviation, in tokens, added to the shorter side: 0 pads least.
    """

    def __init__(
        self,
        source_lengths: np.ndarray,
        target_lengths: np.ndarray,
        *,
        tokens_per_batch: int,
        length_jitter: float = 2.0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(seed=seed, rank=rank, world_size=world_size)
        self.longer = np.maximum(source_lengths, target_lengths)
        self.shorter = np.minimum(source_lengths, target_lengths)
        self.tokens_per_batch = tokens_per_batch
        self.length_jitter = length_jitter
        self.ends = budget_ends(np.sort(self.longer), tokens_per_batch)

    def all_batches(self, generator: np.random.Generator) -> list[np.ndarray]:
        noisy = self.shorter + self.length_jitter * generator.standard_normal(len(self.shorter))
        order = np.lexsort((noisy, self.longer))
        batches = np.split(order, self.ends[:-1])
        return [batches[place] for place in generator.permutation(len(batches))]


class OrderedTokenBudgetBatches(EpochBatches):
    """As `TokenBudgetBatches`, in the order of length: for evaluation."""

    def __init__(
        self,
        source_lengths: np.ndarray,
        target_lengths: np.ndarray,
        *,
        tokens_per_batch: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(rank=rank, world_size=world_size)
        longer = np.maximum(source_lengths, target_lengths)
        self.order = np.lexsort((np.minimum(source_lengths, target_lengths), longer))
        self.ends = budget_ends(longer[self.order], tokens_per_batch)

    def all_batches(self, generator: np.random.Generator) -> list[np.ndarray]:
        return np.split(self.order, self.ends[:-1])


def budget_ends(lengths: np.ndarray, tokens_per_batch: int) -> list[int]:
    """Where batches of rows sorted by length end: rows x longest row <= tokens_per_batch."""
    ends: list[int] = []
    start = 0
    for place, length in enumerate(lengths.tolist()):
        if place > start and (place + 1 - start) * length > tokens_per_batch:
            ends.append(place)
            start = place
    return [*ends, len(lengths)]


class ShuffledBlocks(EpochBatches):
    """All blocks of a stream in random order, from another offset each epoch.

    Args:
        tokens: length of the stream.
        context_length: tokens in a block.
        batch_size: blocks in a batch.
    """

    def __init__(
        self,
        tokens: int,
        *,
        context_length: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(seed=seed, rank=rank, world_size=world_size)
        if tokens <= context_length:
            raise UserError(
                f"the train split must have more tokens than a block, got {tokens} tokens and "
                f"data.context_length={context_length}; lower data.context_length, or take more text."
            )
        self.tokens, self.context_length, self.batch_size = tokens, context_length, batch_size
        # One block less than fits, where there is more than one, leaves room for every offset.
        self.blocks = max(1, (tokens - context_length) // context_length)
        self.room = tokens - self.blocks * context_length

    def all_batches(self, generator: np.random.Generator) -> list[np.ndarray]:
        offset = generator.integers(min(self.context_length, self.room))
        starts = offset + self.context_length * generator.permutation(self.blocks)
        return in_batches(starts, self.batch_size)


class RandomBlocks(ShuffledBlocks):
    """As many blocks as `ShuffledBlocks`, each from a place of its own, drawn with replacement."""

    def all_batches(self, generator: np.random.Generator) -> list[np.ndarray]:
        starts = generator.integers(self.tokens - self.context_length, size=self.blocks)
        return in_batches(starts, self.batch_size)


class OrderedBlocks(EpochBatches):
    """The blocks of a stream one after the other: every token after the first is a target once."""

    def __init__(
        self,
        tokens: int,
        *,
        context_length: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(rank=rank, world_size=world_size)
        self.starts = np.arange(0, max(1, tokens - 1), context_length)
        self.batch_size = batch_size

    def all_batches(self, generator: np.random.Generator) -> list[np.ndarray]:
        return in_batches(self.starts, self.batch_size)


def in_batches(samples: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Consecutive batches; the last one may be smaller."""
    return [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]


class ResumableLoader(DataLoader[Any]):
    """A loader that goes on in the middle of an epoch: Lightning keeps its state in the checkpoint.

    The state counts the batches given to the trainer, not those that workers prepared ahead. It
    holds for the world size it was made with.

    Args:
        dataset: gives a batch for a list of places.
        sampler: gives those lists.
        num_workers: processes that prepare batches; 0 prepares them in the training process.
    """

    def __init__(
        self, dataset: Dataset[Any], sampler: EpochBatches, *, num_workers: int = 0
    ) -> None:
        super().__init__(
            dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            # Forking a process that has computed with several threads can deadlock.
            multiprocessing_context="spawn" if num_workers > 0 else None,
            pin_memory=torch.cuda.is_available(),
        )
        self.batches: EpochBatches = sampler
        self.given = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.given = self.batches.skip
        for batch in super().__iter__():
            self.given += 1
            yield batch

    def order(self) -> str:
        """A sha256 that is equal where the same batches come in the same order.

        It is of the seed, of what draws the batches, of the places of all samples of the first
        epoch, batch by batch, and of the tokens of its first batch. So beside an equal fingerprint
        of the data it proves that the first epoch's batches are the same, in the same order; and
        since every order is a function of seed and epoch alone, so are those of any epoch. It does
        not depend on the rank, nor on where a run was resumed; on the number of ranks only where
        they divide batches; and it does not say how many batches make a step.
        """
        digest = hashlib.sha256(f"{type(self.batches).__name__} {self.batches.seed}".encode())
        batches = self.batches.divided(epoch=0)
        for batch in batches:
            digest.update(len(batch).to_bytes(8) + batch.astype("<i8").tobytes())
        for part in self.dataset[batches[0].tolist()]:
            if part is not None:
                digest.update(part.numpy().tobytes())
        return digest.hexdigest()

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given, "world_size": self.batches.world_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state["world_size"] != self.batches.world_size:
            raise UserError(
                "the checkpoint lies in the middle of an epoch of "
                f"{state['world_size']} processes, got "
                f"{self.batches.world_size}; resume with as many, or from the end of an epoch."
            )
        self.batches.skip = state["given"] % len(self.batches)
