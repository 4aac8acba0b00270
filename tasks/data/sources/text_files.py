"""Running text from files."""

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from attention_zoo.errors import BadInput, UserError
from attention_zoo.factory import typed_options
from attention_zoo.tasks.data.cache import sha256_of_file
from attention_zoo.tasks.data.sources.base import Source
from attention_zoo.tasks.data.sources.columns import SUFFIXES, read_columns, suffix_of
from attention_zoo.tasks.data.sources.files import SplitFiles, find_file
from attention_zoo.tasks.data.sources.text_reader import read_chunks, read_text
from attention_zoo.tasks.wording import pluralize


class FileText(Iterable[str]):
    """The text of a file, or lines `start` to `stop` of it, read anew whenever it is iterated.

    It is never held as a whole, so a file may be larger than the memory.
    """

    def __init__(self, path: Path, start: int = 0, stop: int | None = None) -> None:
        self.path, self.start, self.stop = path, start, stop

    def __iter__(self) -> Iterator[str]:
        return islice(read_chunks(self.path), self.start, self.stop)


class Documents(Iterable[str | FileText]):
    """The documents of files, read anew whenever they are iterated."""

    def __init__(self, paths: Sequence[Path], column: str | int | None) -> None:
        self.paths, self.column = paths, column

    def __iter__(self) -> Iterator[str | FileText]:
        for path in self.paths:
            if suffix_of(path.name) not in SUFFIXES:
                yield FileText(path)
            else:
                yield from (text for (text,) in read_columns(path, [self.column or ""], 1))


class TextFiles(SplitFiles[Iterable[str | FileText]]):
    """Text: each plain file is one document, and each row of a table is one.

    Where a share of train is cut off for other splits, it is drawn among the documents if they are
    enough for a whole number of them, else it is the end of each document.

    Args:
        column: of tables (CSV, tab-separated, JSON lines, parquet), that of the text.
        options: of `SplitFiles`. The files of a split are a list; a single name may stand for it.
    """

    forms = (
        "data.source.train=a.txt or data.source.train=[a.txt,b.txt], or data.source.train=a.jsonl "
        "data.source.column=text for a table (.tsv, .csv, .jsonl, .parquet)"
    )

    @typed_options
    def __init__(self, *, column: str | int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.column = column
        names = [name for files in self.files.values() for name in files]
        if column is not None and not any(suffix_of(name) in SUFFIXES for name in names):
            raise UserError(
                f"data.source.column={column} would have no effect on plain text; leave it out, or "
                f"name a table ({', '.join(SUFFIXES)})."
            )

    def parse_files(self, split: str, files: Any) -> list[str]:
        names = [files] if isinstance(files, str) else files
        if not isinstance(names, Sequence) or not all(isinstance(x, str) and x for x in names):
            raise UserError(
                f"data.source.{split} must be names of files, got {files!r}; give it: "
                f"{self.forms.replace('train', split)}."
            )
        return list(names)

    def paths(self, split: str) -> list[Path]:
        """Return the files of a split. Raise BadInput if one is missing."""
        return [find_file(self.root / name) for name in self.files[split]]

    def read_split(self, split: str) -> "Documents":
        paths = self.paths(split)
        for path in paths:
            if suffix_of(path.name) in SUFFIXES and self.column is None:
                raise UserError(
                    f"{path} is a table; name the column of the text, such as "
                    "data.source.column=text, or call it .txt to take it as it is."
                )
        return Documents(paths, self.column)

    def cut_off(self, items: Iterable[str | FileText]) -> dict[str, list[str | FileText]]:
        documents = list(items)
        if len(documents) * self.valid_fraction >= 1:
            return self.draw_splits(
                documents, key=lambda text: text if isinstance(text, str) else text.path
            )
        result: dict[str, list[str | FileText]] = {s: [] for s in ("train", *self.cut_splits)}
        for document in documents:
            for name, part in zip(result, self.cut_end(document), strict=True):
                result[name].append(part)
        return result

    def cut_end(self, document: str | FileText) -> list[str | FileText]:
        """Cut a document between lines: train, then a share of the characters for each split."""
        lines: Iterable[str] = document
        if isinstance(document, str):
            lines = list(io.StringIO(document, newline="\n"))
        shares = [self.valid_fraction] * len(self.cut_splits)
        total = sum(map(len, lines))
        limits = [total * (1 - sum(shares[start:])) for start in range(len(shares))]
        cuts: list[int] = []
        position, number = 0, 0
        for number, line in enumerate(lines, 1):
            position += len(line)
            while len(cuts) < len(limits) and position >= limits[len(cuts)]:
                cuts.append(number)
        ends = [0, *cuts, number]
        if len({*ends}) < len(ends):
            name = "a document" if isinstance(document, str) else document.path
            raise BadInput(
                f"{name} has {pluralize(number, 'line')}, too few to cut "
                f"off {' and '.join(self.cut_splits)}; give data.source.valid, or more text."
            )
        if isinstance(document, str):
            return ["".join(islice(lines, *span)) for span in pairwise(ends)]
        return [FileText(document.path, *span) for span in pairwise(ends)]

    def cache_key(self) -> dict[str, Any]:
        hashes = {
            split: [[suffix_of(path.name), sha256_of_file(path)] for path in self.paths(split)]
            for split in self.files
        }
        return {"source": "text_files", "files": hashes, "column": self.column, **self.split_key()}


class OneTextFile(Source[list[str]]):
    """One file, cut in order into train, valid and test.

    Args:
        file: its name, plain or gzipped.
        fractions: of the file's bytes, for train, valid and test. With two of them, the valid
            split is the test split as well. A cut inside a character moves back to its start.
        root: the folder that a relative name starts from.
    """

    @typed_options
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
