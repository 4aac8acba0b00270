"""Text files, and the base of the sources that read one or more for each split."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attention_zoo.errors import BadInput
from attention_zoo.tasks.data.sources.base import Source, Split


class SplitFiles(Source[Split]):
    """Files of each split; without `test`, the valid split is the test split as well.

    Args:
        train, valid, test: the files of a split, plain or gzipped. A name without ".gz" stands for
            the gzipped file too.
        root: the folder that relative names start from.
    """

    def __init__(
        self,
        *,
        train: Sequence[Any],
        valid: Sequence[Any],
        test: Sequence[Any] | None = None,
        root: str | Path = ".",
    ) -> None:
        self.root: Path = Path(root)
        self.files = {"train": train, "valid": valid, "test": valid if test is None else test}
        self.valid_is_test = test is None
        if self.valid_is_test:
            self.notes = ["no test files are given: the test split is the valid split"]


def find_file(path: Path) -> Path:
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
        f"there is no file {path} (nor {path.name}{', '.join(suffixes[1:])}): {fault}; check "
        "data.root and the names of the files in data.source."
    )
