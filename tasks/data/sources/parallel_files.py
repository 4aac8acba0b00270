"""Pairs of lines from files."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.data.cache import sha256_of_file
from attention_zoo.tasks.data.sources.base import SPLITS, Pair
from attention_zoo.tasks.data.sources.columns import (
    COMPRESSED,
    SUFFIXES,
    one_line,
    read_columns,
    suffix_of,
    table_format,
)
from attention_zoo.tasks.data.sources.files import SplitFiles, find_file
from attention_zoo.tasks.data.sources.text_reader import read_lines
from attention_zoo.tasks.data.sources.translation_memories import MEMORY_SUFFIXES, read_memory
from attention_zoo.tasks.wording import pluralize


class ParallelFiles(SplitFiles[list[Pair]]):
    """Pairs from two files with a sentence a line, or from one file that holds both sides.

    Line i of a source file is translated by line i of its target file. A file with both sides is
    tab-separated, CSV, JSON lines, parquet, TMX or XLIFF.

    Args:
        columns: of files with both sides, those of source and target (see `read_columns`); of TMX
            and XLIFF, the languages.
        options: of `SplitFiles`. The files of a split are a list of pairs [source, target] and of
            files with both sides; a single one may stand for the list.
    """

    forms = (
        "data.source.train=[[a.en,a.pt]] for a source and a target file, or "
        "data.source.train=a.tsv data.source.columns=[en,pt] for a file with both sides "
        "(.tsv, .csv, .jsonl, .parquet, .tmx, .xliff)"
    )

    def __init__(self, *, columns: Sequence[str | int] | None = None, **options: Any) -> None:
        super().__init__(**options)
        if not isinstance(columns, Sequence | None):
            raise UserError(f"data.source.columns must be a list of two, got {columns!r}.")
        self.columns = columns
        first = next(item for items in self.files.values() for item in items) if self.files else ""
        if not isinstance(first, str):
            self.target_language = Path(COMPRESSED.sub("", first[1])).suffix[1:]
        elif columns is not None and len(columns) == 2 and isinstance(columns[1], str):
            self.target_language = columns[1].split(".")[-1]
        if columns is not None and all(
            isinstance(item, Sequence) and not isinstance(item, str)
            for items in self.files.values()
            for item in items
        ):
            raise UserError(
                f"data.source.columns={list(columns)} would have no effect on pairs of files; "
                f"leave it out, or give a file with both sides: {self.forms}."
            )

    def parse_files(self, split: str, files: Any) -> list[Any]:
        items = (
            list(files) if isinstance(files, Sequence) and not isinstance(files, str) else [files]
        )
        if len(items) == 2 and all(isinstance(x, str) and not has_both_sides(x) for x in items):
            items = [items]
        for item in items or [files]:
            names = [item] if isinstance(item, str) else item
            if (
                not isinstance(names, Sequence)
                or len(names) != (1 if isinstance(item, str) else 2)
                or not all(isinstance(name, str) and name for name in names)
            ):
                raise UserError(
                    f"data.source.{split} must be pairs of files or files with both sides, got "
                    f"{item!r}; give it: {self.forms.replace('train', split)}."
                )
        return items

    @classmethod
    def from_patterns(
        cls, languages: Sequence[str], files: Mapping[str, str | Sequence[str]], root: str | Path
    ) -> "ParallelFiles":
        """Return files that are named by a pattern in which `{}` stands for the language.

        Args:
            languages: of source and target, as the file names spell them.
            files: for each split a pattern, or several whose lines follow each other. A pattern
                without `{}` is a stem: "train" stands for `train.en` and `train.pt`.
            root: the folder with the files.
        """
        if len(languages) != 2:
            raise UserError(
                f"pair must be two languages, for example [en, pt], got {list(languages)}."
            )
        pairs: dict[str, Any] = {}
        for split in SPLITS:
            patterns = files[split]
            pairs[split] = [
                [(name if "{}" in name else name + ".{}").replace("{}", code) for code in languages]
                for name in ([patterns] if isinstance(patterns, str) else patterns)
            ]
        return cls(**pairs, root=root)

    def paths(self, split: str) -> list[list[Path]]:
        """Return the one or two files of each item. Raise BadInput if one is missing."""
        return [
            [find_file(self.root / name) for name in ([item] if isinstance(item, str) else item)]
            for item in self.files[split]
        ]

    def read_split(self, split: str) -> list[Pair]:
        return [pair for paths in self.paths(split) for pair in self.read_pairs(*paths)]

    def read_pairs(self, path: Path, target: Path | None = None) -> list[Pair]:
        """Return the pairs of a source and a target file, or of a file with both sides."""
        if target is not None:
            return read_pairs(path, target)
        if suffix_of(path.name) in MEMORY_SUFFIXES:
            pairs = read_memory(path, self.columns)
        elif table_format(path) is None:
            raise UserError(f"{path} is no file with both sides; give {self.forms}.")
        else:
            pairs = [(one_line(x), one_line(y)) for x, y in read_columns(path, self.columns, 2)]
        if not pairs:
            raise BadInput(f"{path} holds no pair; a split needs at least one.")
        return pairs

    def cut_off(self, items: list[Pair]) -> dict[str, list[Pair]]:
        return self.draw_splits(items, key=itemgetter(0))

    def cache_key(self) -> dict[str, Any]:
        hashes = {
            split: [
                [suffix_of(paths[0].name) * (len(paths) == 1), *map(sha256_of_file, paths)]
                for paths in self.paths(split)
            ]
            for split in self.files
        }
        columns = None if self.columns is None else list(self.columns)
        return {
            "source": "parallel_files",
            "files": hashes,
            "columns": columns,
            **self.split_key(),
        }

    def location(self, split: str, index: int) -> str:
        files = self.files.get("valid" if split == "test" and self.valid_is_test else split)
        if files is None or (split == "train" and self.cut_splits):
            return f"{split}, pair {index + 1} after the split"
        for paths in self.paths(split if split in self.files else "valid"):
            lines = len(self.read_pairs(*paths))
            if index < lines:
                others = "".join(f" (and {path.name})" for path in paths[1:])
                return f"{paths[0]}{others}, line {index + 1}"
            index -= lines
        raise IndexError(f"the {split} split has no such line.")


def has_both_sides(name: str) -> bool:
    """Check by its suffix that a file holds both sides."""
    return suffix_of(name) in (*SUFFIXES, *MEMORY_SUFFIXES)


def read_pairs(source: Path, target: Path) -> list[Pair]:
    """Read the pairs of two files. Raise BadInput if they are empty or differ in length."""
    sources, targets = list(read_lines(source)), list(read_lines(target))
    if len(sources) != len(targets):
        shorter, longer = sorted((len(sources), len(targets)))
        raise BadInput(
            f"{source} has {pluralize(len(sources), 'line')} and {target} has {len(targets)}: "
            f"lines {shorter + 1} to {longer} have no partner; align them, one sentence a line."
        )
    if not sources:
        raise BadInput(f"{source} holds no line; a split needs at least one.")
    return list(zip(sources, targets, strict=True))
