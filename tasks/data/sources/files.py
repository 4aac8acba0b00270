"""The base of the sources that read files for each split, and how files are found."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from attention_zoo.errors import BadInput, UserError
from attention_zoo.factory import typed_options
from attention_zoo.tasks.data.sources.base import SPLITS, Source, Split

Item = TypeVar("Item")
VALID_FRACTION, SEED = 0.05, 0  # of what is cut off


class SplitFiles(Source[Split]):
    """Files of each split.

    Without `valid`, a share of train is cut off for valid, and one for test if it is missing as
    well. With `valid` and without `test`, the valid split is the test split. Without `train` there
    is nothing to train on, but a model can be evaluated.

    Args:
        train, valid, test: the files of a split, plain or compressed. A name without the suffix
            of the compression, such as ".gz", stands for the compressed file too.
        valid_fraction: the share that is cut off for valid, and the same for test.
        seed: of the draw of what is cut off.
        root: the folder that relative names start from.
    """

    forms: str  # of `train`, for messages

    @typed_options
    def __init__(
        self,
        *,
        train: Any = None,
        valid: Any = None,
        test: Any = None,
        valid_fraction: float = VALID_FRACTION,
        seed: int = SEED,
        root: str | Path = ".",
    ) -> None:
        if not 0 < valid_fraction < 0.5:
            raise UserError(
                f"data.source.valid_fraction must lie between 0 and 0.5, got {valid_fraction}; "
                "0.05 is usual."
            )
        if valid is not None and (valid_fraction, seed) != (VALID_FRACTION, SEED):
            raise UserError(
                "data.source.valid is given, so that nothing is cut off and data.source."
                f"valid_fraction={valid_fraction} seed={seed} would have no effect; leave them at "
                f"{VALID_FRACTION} and {SEED}, or leave data.source.valid out."
            )
        self.root: Path = Path(root)
        self.valid_fraction, self.seed = valid_fraction, seed
        given = {"train": train, "valid": valid, "test": test}
        self.files = {
            split: self.parse_files(split, files)
            for split, files in given.items()
            if files is not None
        }
        self.cut_splits = [] if "valid" in self.files else ["valid"]
        if "test" not in self.files and "valid" not in self.files:
            self.cut_splits.append("test")
        self.valid_is_test = "valid" in self.files and "test" not in self.files
        self.for_evaluation = False

    @abstractmethod
    def parse_files(self, split: str, files: Any) -> list[Any]:
        """Return the files of a split as a list. Raise UserError if they have another form."""

    @abstractmethod
    def paths(self, split: str) -> list[Any]:
        """Return the files of a split, found. Raise BadInput if one is missing."""

    def has_all_files(self) -> bool:
        """Check that the files of all splits are there."""
        try:
            return all(self.paths(split) for split in self.files)
        except BadInput:
            return False

    @abstractmethod
    def read_split(self, split: str) -> Any:
        """Return the items of a split that has files."""

    @abstractmethod
    def cut_off(self, items: Any) -> dict[str, Any]:
        """Cut the train split's items into train and `cut_splits`."""

    def keep_only(self, split: str) -> None:
        self.for_evaluation = True
        if "train" in self.files and (split in self.cut_splits or self.has_all_files()):
            return
        files = self.files.get("valid" if split == "test" and self.valid_is_test else split)
        if files is None:
            raise UserError(
                f"data.source.{split} is missing; give it: {self.forms.replace('train', split)}."
            )
        self.files, self.cut_splits, self.valid_is_test = {split: files}, [], False

    def check_training(self) -> None:
        if "train" not in self.files:
            raise UserError(f"data.source.train is missing; give it: {self.forms}.")

    def splits(self) -> dict[str, Split]:
        self.notes = []
        if not self.for_evaluation:
            self.check_training()
        splits = {split: self.read_split(split) for split in self.files}
        if "train" in splits and self.cut_splits:
            splits |= self.cut_off(splits["train"])
            self.notes = [
                *self.notes,
                f"no {' and '.join(self.cut_splits)} files are given: "
                f"{self.valid_fraction:.0%} of train are cut off for each "
                f"(data.source.valid_fraction={self.valid_fraction}, seed={self.seed})",
            ]
        if self.valid_is_test:
            self.notes = [*self.notes, "no test files are given: the test split is the valid split"]
            splits["test"] = splits["valid"]
        return {split: splits[split] for split in SPLITS if split in splits}

    def draw_splits(
        self, items: Sequence[Item], key: Callable[[Item], Hashable]
    ) -> dict[str, list[Item]]:
        """Draw `valid_fraction` of the items for each of `cut_splits`; train keeps the others.

        Items with the same key come into the same split. The draw depends on the keys and the seed,
        not on the order of the items.
        """
        keys = sorted(
            {key(item) for item in items},
            key=lambda value: hashlib.blake2b(
                f"{self.seed} {value}".encode(), digest_size=8
            ).digest(),
        )
        size = max(1, round(self.valid_fraction * len(keys)))
        if size * len(self.cut_splits) >= len(keys):
            raise BadInput(
                f"train has {len(keys)} different items, too few to cut off "
                f"{' and '.join(self.cut_splits)}; give data.source.valid, or more text."
            )
        split_of_key = {
            value: split
            for number, split in enumerate(self.cut_splits)
            for value in keys[number * size : (number + 1) * size]
        }
        result: dict[str, list[Item]] = {split: [] for split in ("train", *self.cut_splits)}
        for item in items:
            result[split_of_key.get(key(item), "train")].append(item)
        return result

    def split_key(self) -> dict[str, Any]:
        """Return what the splits depend on besides the files, for the cache key."""
        cut = {"valid_fraction": self.valid_fraction, "seed": self.seed}
        return {"valid_is_test": self.valid_is_test, **(cut if self.cut_splits else {})}


def find_file(path: Path, remedy: str = "check data.root and the names in data.source") -> Path:
    """Return `path`, or `path` with the suffix of a compression.

    Raise BadInput if none of them is a file.
    """
    suffixes = ("", ".gz", ".xz", ".bz2", ".zst")
    for candidate in [path.with_name(path.name + suffix) for suffix in suffixes if path.name]:
        try:
            if candidate.is_file():
                return candidate
        except OSError as error:
            raise BadInput(f"{path} cannot be read ({error.strerror or error}).") from error
    if path.exists() and not path.is_dir():
        raise BadInput(f"{path} is a device or a pipe; write its text to a file and name that.")
    folder, fault = path.parent, "there is no such folder"
    if path.is_dir():
        folder, fault = path, "it is a folder"
    if folder.is_dir():
        names = sorted(entry.name for entry in folder.iterdir())
        listing = ", ".join(names[:8]) or "nothing"
        fault = f"the folder holds {listing}" + ", …" * (len(names) > 8)
    raise BadInput(
        f"there is no file {path} (nor {path.name}{', '.join(suffixes[1:])}): {fault}; {remedy}."
    )
