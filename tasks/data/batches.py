"""The batches of each task, and the datasets that give a batch for a list of indices."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from attention_zoo.tasks.data.tokenizers import BOS, PAD

IGNORE_INDEX = -100  # torch's cross-entropy skips this target


class TranslationBatch(NamedTuple):
    """Sentence pairs."""

    source: Tensor  # [b s] long, right-padded with 0; ends with eos
    target: Tensor  # [b t] long, right-padded with 0; bos … eos
    # [b] long, of each pair in its split; hides tuple.index, which nobody needs here
    index: Tensor  # type: ignore[assignment]

    def without_targets(self) -> "TranslationBatch":
        """Return the batch with nothing to predict."""
        return self._replace(target=self.target.where(self.target == BOS, PAD))


class LanguageBatch(NamedTuple):
    """Blocks of running text, or sequences with queries at some positions."""

    inputs: Tensor  # [b t] long
    # [b t] long, the token after each input, or [b a] long, the answer at each of
    # `target_positions`; -100 where nothing is to be predicted
    targets: Tensor
    # [b t] long, the number of the document in the block; None: attention may cross documents
    segment_ids: Tensor | None = None
    target_positions: Tensor | None = None  # [b a] long; None: all tokens are to be predicted

    def without_targets(self) -> "LanguageBatch":
        """Return the batch with nothing to predict."""
        return self._replace(targets=torch.full_like(self.targets, IGNORE_INDEX))


class BatchDataset(Dataset[Any]):
    """A dataset that gives a whole batch for a list of indices."""

    @abstractmethod
    def __len__(self) -> int: ...

    def indices(self) -> np.ndarray:
        """Return the indices of all samples in order, [n]."""
        return np.arange(len(self))


class JaggedArray(NamedTuple):
    """Rows of different lengths in one array: row i is values[starts[i]:starts[i + 1]]."""

    values: np.ndarray
    starts: np.ndarray

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[int] | np.ndarray]) -> "JaggedArray":
        """Concatenate the rows."""
        arrays = [np.asarray(row, dtype=np.int32) for row in rows]
        starts = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
        return cls(np.concatenate([np.zeros(0, np.int32), *arrays]), starts)

    def row(self, index: int) -> np.ndarray:
        """Return row `index`."""
        return self.values[self.starts[index] : self.starts[index + 1]]

    def lengths(self) -> np.ndarray:
        """Return the length of each row."""
        return np.diff(self.starts)


@dataclass(eq=False)
class PairDataset(BatchDataset):
    """Encoded sentence pairs."""

    source: JaggedArray  # rows that end with eos
    target: JaggedArray  # rows bos … eos
    index: np.ndarray  # of each pair in its split, [n]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: list[int]) -> TranslationBatch:
        source, target = (
            [torch.from_numpy(side.row(row).astype(np.int64)) for row in rows]
            for side in (self.source, self.target)
        )
        pad = partial(pad_sequence, batch_first=True, padding_value=PAD)
        return TranslationBatch(pad(source), pad(target), torch.from_numpy(self.index[rows]))


class BlockDataset(BatchDataset):
    """Blocks of a stream of tokens; a list of start positions gives a batch.

    The bos of the next document is no target, nor is anything after the end of the stream. The last
    `stride` tokens of a block are targets, and all of the first block. So from the starts 0,
    stride, 2 · stride, … every token after the first is a target once; outside the first block, at
    least context_length + 1 - stride tokens of its block are before it.

    Args:
        stream: bos … eos of one document after the other, [n].
        context_length: tokens in a block.
        stride: targets in a block; by default all of its tokens.
        documents: number the documents within a block, so that attention can stay in them.
    """

    def __init__(
        self,
        stream: np.ndarray,
        *,
        context_length: int,
        stride: int | None = None,
        documents: bool = False,
    ) -> None:
        self.stream = stream
        self.context_length = context_length
        self.stride = context_length if stride is None else stride
        self.documents = documents

    def __len__(self) -> int:
        return len(self.stream)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a worker process, which maps the file of the stream again."""
        if isinstance(self.stream, np.memmap):
            return self.__dict__ | {"stream": self.stream.filename}
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if not isinstance(self.stream, np.ndarray):
            self.stream = np.load(self.stream, mmap_mode="r", allow_pickle=False)

    def indices(self) -> np.ndarray:
        """Return the starts of all blocks that have a target, [n]."""
        targets = len(self.stream) - 1 - (self.context_length - self.stride)
        return np.arange(0, max(1, targets), self.stride)

    def __getitem__(self, starts: list[int]) -> LanguageBatch:
        start = torch.tensor(starts)[:, None]
        offset = torch.arange(self.context_length + 1)
        index = (start + offset).numpy()
        tokens = self.stream[np.minimum(index, len(self.stream) - 1)].astype(np.int64)
        tokens[index >= len(self.stream)] = PAD
        window = torch.from_numpy(tokens)
        inputs, targets = window[:, :-1], window[:, 1:].clone()
        # The block before has these targets.
        scored = (start > 0) & (offset[:-1] < self.context_length - self.stride)
        targets[(targets == PAD) | (targets == BOS) | scored] = IGNORE_INDEX
        segment_ids = (inputs == BOS).long().cumsum(1) if self.documents else None
        return LanguageBatch(inputs.contiguous(), targets, segment_ids)
