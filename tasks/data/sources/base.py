"""The base of the sources of text."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, Generic, TypeVar

from attention_zoo.errors import Unsupported

SPLITS = ("train", "valid", "test")

Pair = tuple[str, str]
Split = TypeVar("Split")


class Source(ABC, Generic[Split]):
    """Provides splits: lists of (source, target) pairs, lists of texts, or sequences to query.

    After `splits()`, `notes` holds what the user should know about them.
    """

    root: Path | None = None  # the folder that file names start from, if the source reads files
    notes: Sequence[str] = ()
    target_language: str | None = None  # of pairs, such as "zh_TW", where it is known

    @abstractmethod
    def splits(self) -> dict[str, Split]:
        """Return "train", "valid" and "test". Raise BadInput if one of them is missing."""

    def check_training(self) -> None:
        """Raise UserError if there can be no train split, before anything is read."""

    def cache_key(self) -> dict[str, Any] | None:
        """Return every input of `splits`, in plain types: equal keys give equal splits.

        Without a key, as by default, prepared data are not cached.
        """
        return None

    def keep_only(self, split: str) -> None:
        """Prepare for an evaluation of `split`, to which files of other splits may be missing."""

    def location(self, split: str, index: int) -> str:
        """Return where item `index` of a split was read, for messages."""
        return f"{split}, line {index + 1}"

    def probes(self) -> list[Any]:
        """Return items to try the model on during training; the train split has none of them."""
        return []

    def with_root(self, root: str | Path) -> "Source[Split]":
        """Return the same text, read from files under `root`."""
        if self.root is None:
            raise Unsupported(
                f"{type(self).__name__} makes its own text and reads no files, got "
                f"data.root={root}; leave data.root out, or take another data source."
            )
        other = copy(self)
        other.root = Path(root)
        return other


def is_pair(item: object) -> bool:
    """Return whether an item is a pair of texts, not a document or its parts."""
    return isinstance(item, tuple) and len(item) == 2 and all(isinstance(x, str) for x in item)


def split_of(content: bytes) -> str:
    """Return the split of generated content by a hash: 1 in 20 is valid, 1 in 20 is test."""
    digest = hashlib.blake2b(content, digest_size=4).digest()
    return {0: "valid", 1: "test"}.get(int.from_bytes(digest) % 20, "train")
