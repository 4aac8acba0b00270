"""Running text from files."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.cache import sha256_of_file
from attention_zoo.tasks.data.sources.base import SPLITS, Source
from attention_zoo.tasks.data.sources.files import SplitFiles, find_file
from attention_zoo.tasks.data.sources.text_reader import read_text


class TextFiles(SplitFiles[list[str]]):
    """Text files, each of them one document; a single name may stand for a list of one."""

    def paths(self, split: str) -> list[Path]:
        """Return the files of a split. Raise BadInput if one is missing."""
        names = self.files[split]
        return [find_file(self.root / x) for x in ([names] if isinstance(names, str) else names)]

    def splits(self) -> dict[str, list[str]]:
        return {split: [read_text(path) for path in self.paths(split)] for split in SPLITS}

    def cache_key(self) -> dict[str, Any]:
        hashes = {split: [sha256_of_file(path) for path in self.paths(split)] for split in SPLITS}
        return {"source": "text_files", "files": hashes, "valid_is_test": self.valid_is_test}


class OneTextFile(Source[list[str]]):
    """One file, cut in order into train, valid and test.

    Args:
        file: its name, plain or gzipped.
        fractions: of the file's bytes, for train, valid and test. With two of them, the valid
            split is the test split as well. A cut inside a character moves back to its start.
        root: the folder that a relative name starts from.
    """

    def __init__(self, *, file: str, fractions: Sequence[float], root: str | Path = ".") -> None:
        self.root: Path = Path(root)
        if len(fractions) not in (2, 3) or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-9:
            raise UserError(
                "fractions must be two or three positive numbers that sum to 1, got "
                f"{list(fractions)}; for example [0.9, 0.05, 0.05]."
            )
        self.file = file
        self.fractions = [float(fraction) for fraction in fractions]
        if len(fractions) == 2:
            self.notes = ["the file is cut in two: the test split is the valid split"]

    def splits(self) -> dict[str, list[str]]:
        texts = cut_text(read_text(find_file(self.root / self.file)), self.fractions)
        return {"train": [texts[0]], "valid": [texts[1]], "test": [texts[-1]]}

    def cache_key(self) -> dict[str, Any]:
        file = sha256_of_file(find_file(self.root / self.file))
        return {"source": "one_text_file", "file": file, "fractions": self.fractions}


def cut_text(text: str, fractions: Sequence[float]) -> list[str]:
    """Cut text into consecutive parts of these fractions of its UTF-8, between characters."""
    content = text.encode()
    ends = [0]
    for count in range(1, len(fractions)):
        end = int(len(content) * sum(fractions[:count]))
        while 0 < end < len(content) and content[end] & 0xC0 == 0x80:
            end -= 1
        ends.append(end)
    return [content[start:end].decode() for start, end in pairwise([*ends, len(content)])]
