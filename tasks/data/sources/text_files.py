"""Running text from files."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.data.cache import sha256_of_file
from attention_zoo.tasks.data.sources.base import (
    SPLITS,
    Source,
    decode,
    find,
    read_bytes,
    read_text,
)


class TextFiles(Source[str]):
    """Every file is one document.

    Args:
        train, valid, test: file names, plain or gzipped (a name without ".gz" finds the gzipped
            file too). Without `test`, the valid split is the test split as well.
        root: the folder that relative names start from.
    """

    def __init__(
        self,
        *,
        train: Sequence[str] | str,
        valid: Sequence[str] | str,
        test: Sequence[str] | str | None = None,
        root: str | Path = ".",
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.files = {
            split: [names] if isinstance(names, str) else list(names)
            for split, names in zip(
                SPLITS, (train, valid, valid if test is None else test), strict=True
            )
        }
        self._valid_is_test = test is None

    def paths(self, split: str) -> list[Path]:
        """The files of a split. Raises BadInput where one is missing."""
        remedy = f"check data.root and the names of the {split} files in data.source"
        return [find(self.root / name, remedy=remedy) for name in self.files[split]]

    def splits(self) -> dict[str, list[str]]:
        note = "no test files are given: the test split is the valid split"
        self.notes = [note] if self._valid_is_test else []
        return {split: [read_text(path) for path in self.paths(split)] for split in SPLITS}

    def key(self) -> dict[str, Any]:
        return {
            "source": "text_files",
            "files": {
                split: [sha256_of_file(path) for path in self.paths(split)] for split in SPLITS
            },
            "valid_is_test": self._valid_is_test,
        }

    def place(self, split: str, index: int) -> str:
        return str(self.root / self.files[split][index])

    def in_folder(self, root: str | Path) -> "TextFiles":
        test = None if self._valid_is_test else self.files["test"]
        return TextFiles(train=self.files["train"], valid=self.files["valid"], test=test, root=root)


class OneTextFile(Source[str]):
    """One file, cut in order into train, valid and test.

    Args:
        file: its name, plain or gzipped.
        shares: of the file's bytes for train, valid and, where there is a third, test; with two,
            the valid split is the test split as well. A cut inside a character moves back to its
            start.
        root: the folder that a relative name starts from.
    """

    def __init__(self, *, file: str, shares: Sequence[float], root: str | Path = ".") -> None:
        super().__init__()
        if len(shares) not in (2, 3) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
            raise UserError(
                f"shares must be two or three positive numbers that sum to 1, got {list(shares)}; "
                "for example [0.9, 0.05, 0.05]."
            )
        self.file = file
        self.shares = [float(share) for share in shares]
        self.root = Path(root)

    def path(self) -> Path:
        """The file. Raises BadInput where it is missing."""
        return find(
            self.root / self.file, remedy="check data.root, or name the file in data.source"
        )

    def splits(self) -> dict[str, list[str]]:
        path = self.path()
        parts = cut(read_bytes(path), self.shares)
        texts = [[decode(part, path)] for part in parts]
        self.notes = []
        if len(texts) == 2:
            self.notes.append("the file is cut in two: the test split is the valid split")
            texts.append(texts[1])
        return dict(zip(SPLITS, texts, strict=True))

    def key(self) -> dict[str, Any]:
        return {
            "source": "one_text_file",
            "file": sha256_of_file(self.path()),
            "shares": self.shares,
        }

    def place(self, split: str, index: int) -> str:
        return f"{self.root / self.file} ({split})"

    def in_folder(self, root: str | Path) -> "OneTextFile":
        return OneTextFile(file=self.file, shares=self.shares, root=root)


def cut(content: bytes, shares: Sequence[float]) -> list[bytes]:
    """Consecutive parts of UTF-8 text in these shares, cut between characters."""
    ends = [0]
    for number in range(1, len(shares)):
        end = int(len(content) * sum(shares[:number]))
        while 0 < end < len(content) and content[end] & 0xC0 == 0x80:
            end -= 1
        ends.append(end)
    return [content[start:end] for start, end in pairwise([*ends, len(content)])]


def text_folder(files: Mapping[str, Any], root: str | Path) -> TextFiles | OneTextFile:
    """The files of a corpus: `file` and `shares` for one that is to be cut, else a name a split."""
    if not Path(root).is_dir():
        raise BadInput(f"there is no folder {root}; give data.root=FOLDER the one with the files.")
    return OneTextFile(**files, root=root) if "file" in files else TextFiles(**files, root=root)
