"""Samplers: which samples make a batch, in which order, and on which rank.

An order is a function of seed and epoch alone. All world sizes divide the same list of batches:
rank r of n takes batches r, r + n, … of it. So a step of n ranks takes the n batches that one
process accumulates with `accumulate_grad_batches=n`. If n does not divide their number, the batches
that remain for the last step of the epoch are halved until each rank has one. All ranks take the
same number of steps, and every sample is taken once.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from torch.utils.data import Sampler

from attention_zoo.errors import UserError


class Batches(Sequence[np.ndarray]):
    """Batches of samples that follow each other in one order, cut when they are asked for.

    A large text has millions of batches: an array each would take more memory than the order.

    Args:
        samples: the order, [n].
        sizes: the number of samples in each batch, [m].
    """

    def __init__(self, samples: np.ndarray, sizes: Sequence[int] | np.ndarray) -> None:
        self.samples = samples
        self.ends = np.cumsum(sizes, dtype=np.int64)
        self.numbers = range(len(self.ends))  # of the batches that this object gives

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> "Batches": ...

    def __getitem__(self, index: int | slice) -> "np.ndarray | Batches":
        if isinstance(index, slice):
            part = Batches.__new__(Batches)
            part.samples, part.ends, part.numbers = self.samples, self.ends, self.numbers[index]
            return part
        number = self.numbers[index]
        start = self.ends[number - 1] if number else 0
        return self.samples[start : self.ends[number]]

    def __len__(self) -> int:
        return len(self.numbers)

    def sizes(self) -> np.ndarray:
        """Return the number of samples in each batch of the order, [m]."""
        return np.diff(self.ends, prepend=0)


class EpochSampler(Sampler[list[int]], ABC):
    """Batches of indices into a dataset, in an order that `seed` and the epoch decide."""

    def __init__(self, *, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = 0
        self.skip_batches = 0  # of the next pass; a resumed run has seen them already
        self._length: int | None = None

    @abstractmethod
    def draw_batches(self, generator: np.random.Generator) -> Batches:
        """Draw the batches of an epoch; their number and sizes do not depend on the generator."""

    def epoch_batches(self, epoch: int) -> Batches:
        """Return the batches of an epoch, those of all ranks."""
        batches = self.draw_batches(np.random.default_rng([self.seed, epoch]))
        whole_steps = len(batches) - len(batches) % self.world_size
        sizes = batches.sizes()
        last = halve_for_ranks(sizes[whole_steps:], self.world_size)
        return Batches(batches.samples, np.concatenate([sizes[:whole_steps], last]))

    def rank_batches(self) -> Batches:
        """Return this rank's batches of the current epoch; an idle rank's last is empty."""
        return self.epoch_batches(self.epoch)[self.rank :: self.world_size]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each one."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self._length is None:
            self._length = len(self.rank_batches())
        return self._length

    def is_idle(self, batch_number: int) -> bool:
        """Return whether a batch of the current epoch, from 1, only keeps step with other ranks.

        There are fewer samples than ranks then. This rank is given a sample of another one, which
        must not count.
        """
        return batch_number == len(self) and not len(self.rank_batches()[-1])

    def __iter__(self) -> Iterator[list[int]]:
        skip, self.skip_batches = self.skip_batches, 0
        batches = self.rank_batches()
        for batch in batches[skip:]:
            yield batch.tolist() or self.epoch_batches(self.epoch)[-self.world_size][:1].tolist()


def halve_for_ranks(sizes: np.ndarray, world_size: int) -> np.ndarray:
    """Return the sizes of batches, the largest halved until a multiple of world_size is there.

    The halves stay next to each other. If there are fewer samples than ranks, empty batches follow.
    """
    for _ in range(-len(sizes) % world_size):
        largest = sizes.argmax()
        size = sizes[largest]
        if size < 2:
            sizes = np.append(sizes, 0)
        else:
            sizes = np.insert(sizes, largest, (size + 1) // 2)
            sizes[largest + 1] = size // 2
    return sizes


def consecutive_batches(samples: np.ndarray, batch_size: int) -> Batches:
    """Cut an order into batches; the last one may be smaller."""
    sizes = np.full(-(-len(samples) // batch_size), batch_size)
    sizes[-1:] -= len(sizes) * batch_size - len(samples)
    return Batches(samples, sizes)


class FixedBatchSampler(EpochSampler):
    """The same batches in every epoch: for evaluation, where no rank may be idle.

    Raise UserError if there are fewer samples than ranks.
    """

    def __init__(self, batches: Batches, **options: int) -> None:
        super().__init__(**options)
        sizes = halve_for_ranks(batches.sizes(), self.world_size)
        self.batches = Batches(batches.samples, sizes)
        if not sizes.all():
            raise UserError(
                "a split to evaluate must have a sample for each process, got "
                f"{len(batches.samples)} for {self.world_size} processes; lower trainer.devices."
            )

    def draw_batches(self, generator: np.random.Generator) -> Batches:
        return self.batches


class TokenBudgetSampler(EpochSampler):
    """Pairs of similar length, padded to at most `tokens_per_batch` tokens on each side.

    Noise on the length of the shorter sides changes the members of the batches each epoch. The
    sizes of the batches and their number are the same in all epochs.

    Args:
        source_lengths, target_lengths: tokens of each pair, special tokens included, [n].
        tokens_per_batch: the most rows x longest row, on each side. A pair that is longer than
            that is a batch of its own.
        length_jitter: standard deviation of the noise, in tokens: 0 pads least.
    """

    def __init__(
        self,
        source_lengths: np.ndarray,
        target_lengths: np.ndarray,
        *,
        tokens_per_batch: int,
        length_jitter: float = 2.0,
        **options: int,
    ) -> None:
        super().__init__(**options)
        self.longer = np.maximum(source_lengths, target_lengths)
        self.shorter = np.minimum(source_lengths, target_lengths)
        self.length_jitter = length_jitter
        ends, start = [], 0
        for row, length in enumerate(np.sort(self.longer).tolist()):
            if row > start and (row + 1 - start) * length > tokens_per_batch:
                ends.append(row)
                start = row
        self.batch_sizes = np.diff([0, *ends, len(self.longer)])

    def batches_by_length(self, noise: float | np.ndarray = 0.0) -> Batches:
        """Return the batches in the order of the longer sides, then of the shorter ones."""
        order = np.lexsort((self.shorter + noise, self.longer))
        return Batches(order, self.batch_sizes)

    def draw_batches(self, generator: np.random.Generator) -> Batches:
        noise = self.length_jitter * generator.standard_normal(len(self.shorter))
        batches = self.batches_by_length(noise)
        order = generator.permutation(len(batches))
        return Batches(np.concatenate([batches[i] for i in order]), self.batch_sizes[order])


class ShuffledBlockSampler(EpochSampler):
    """The blocks of a stream of `tokens` in random order, from another offset each epoch."""

    def __init__(
        self, tokens: int, *, context_length: int, batch_size: int, **options: int
    ) -> None:
        super().__init__(**options)
        if tokens <= context_length:
            raise UserError(
                f"the train split must have more tokens than a block, got {tokens} tokens and "
                f"data.context_length={context_length}; lower data.context_length or add text."
            )
        self.tokens, self.context_length, self.batch_size = tokens, context_length, batch_size
        # One block less than fits, if there is more than one, leaves room for every offset.
        self.blocks = max(1, (tokens - context_length) // context_length)

    def draw_batches(self, generator: np.random.Generator) -> Batches:
        spare_tokens = self.tokens - self.blocks * self.context_length
        offset = generator.integers(min(self.context_length, spare_tokens))
        # In place, and in the smallest type: a large text has as many blocks.
        starts = np.arange(self.blocks, dtype=np.min_scalar_type(self.tokens))
        generator.shuffle(starts)
        starts *= self.context_length
        starts += int(offset)
        return consecutive_batches(starts, self.batch_size)


class RandomBlockSampler(ShuffledBlockSampler):
    """The same number of blocks, each from a random position, drawn with replacement."""

    def draw_batches(self, generator: np.random.Generator) -> Batches:
        starts = generator.integers(self.tokens - self.context_length, size=self.blocks)
        return consecutive_batches(starts, self.batch_size)


class ShuffledRowSampler(EpochSampler):
    """The rows of a dataset in random order."""

    def __init__(self, rows: int, *, batch_size: int, **options: int) -> None:
        super().__init__(**options)
        self.rows, self.batch_size = rows, batch_size

    def draw_batches(self, generator: np.random.Generator) -> Batches:
        return consecutive_batches(generator.permutation(self.rows), self.batch_size)
