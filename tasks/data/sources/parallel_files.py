"""Pairs of lines from pairs of files."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.data.cache import sha256_of_file
from attention_zoo.tasks.data.sources.base import SPLITS, Pair, Source, find, read_lines


class ParallelFiles(Source[Pair]):
    """Line i of the source file goes with line i of the target file.

    Args:
        train, valid, test: pairs of files, plain or gzipped (a name without ".gz" finds the
            gzipped file too). Without `test`, the valid split is the test split as well.
        root: the folder that relative names start from.
    """

    def __init__(
        self,
        *,
        train: Sequence[Sequence[str]],
        valid: Sequence[Sequence[str]],
        test: Sequence[Sequence[str]] | None = None,
        root: str | Path = ".",
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.files = {"train": train, "valid": valid, "test": valid if test is None else test}
        for split, pairs in self.files.items():
            for pair in pairs:
                if isinstance(pair, str) or len(pair) != 2:
                    raise UserError(
                        f"{split} must be pairs of files, [[source, target], …], got {pair!r}; "
                        f"for example data.source.{split}=[[{split}.en,{split}.pt]]."
                    )
        self._valid_is_test = test is None
        self._starts: dict[str, list[int]] = {}

    @classmethod
    def of_pair(
        cls, pair: Sequence[str], files: Mapping[str, str | Sequence[str]], root: str | Path
    ) -> "ParallelFiles":
        """Files named by a pattern in which `{}` stands for the language.

        Args:
            pair: the languages of source and target, as the file names spell them.
            files: for each split a pattern, or several whose lines follow each other; a pattern
                without `{}` is a stem: "train" reads `train.en` and `train.pt`.
            root: the folder that holds them.
        """
        if len(pair) != 2:
            raise UserError(f"pair must be two languages, for example [en, pt], got {list(pair)}.")
        named: dict[str, list[list[str]]] = {}
        for split in SPLITS:
            patterns = files[split]
            named[split] = [
                [(name if "{}" in name else name + ".{}").replace("{}", side) for side in pair]
                for name in ([patterns] if isinstance(patterns, str) else patterns)
            ]
        return cls(**named, root=root)

    def paths(self, split: str) -> list[tuple[Path, Path]]:
        """The files of a split. Raises BadInput where one is missing."""
        remedy = f"check data.root and the names of the {split} files in data.source"
        return [
            (find(self.root / source, remedy=remedy), find(self.root / target, remedy=remedy))
            for source, target in self.files[split]
        ]

    def splits(self) -> dict[str, list[Pair]]:
        self.notes = ["no test files are given: the test split is the valid split"]
        self.notes = self.notes if self._valid_is_test else []
        result: dict[str, list[Pair]] = {}
        for split in SPLITS:
            lines: list[Pair] = []
            starts = self._starts[split] = []
            for source, target in self.paths(split):
                starts.append(len(lines))
                lines += aligned(source, target)
            result[split] = lines
        return result

    def key(self) -> dict[str, Any]:
        return {
            "source": "parallel_files",
            "files": {
                split: [[sha256_of_file(path) for path in pair] for pair in self.paths(split)]
                for split in SPLITS
            },
            "valid_is_test": self._valid_is_test,
        }

    def place(self, split: str, index: int) -> str:
        starts = self._starts.get(split, [0])
        number = bisect_right(starts, index) - 1
        source, target = self.files[split][number]
        return f"{self.root / source} (and {target}), line {index - starts[number] + 1}"

    def in_folder(self, root: str | Path) -> "ParallelFiles":
        test = None if self._valid_is_test else self.files["test"]
        return ParallelFiles(
            train=self.files["train"], valid=self.files["valid"], test=test, root=root
        )


def aligned(source: Path, target: Path) -> list[Pair]:
    """The pairs of two files. Raises BadInput where they differ in length, or hold nothing."""
    sources, targets = read_lines(source), read_lines(target)
    if len(sources) != len(targets):
        shorter, longer = sorted((len(sources), len(targets)))
        raise BadInput(
            f"{source} has {len(sources)} lines and {target} has {len(targets)}: lines "
            f"{shorter + 1} to {longer} have no partner; align them, one sentence a line."
        )
    if not sources:
        raise BadInput(f"{source} holds no line; a split needs at least one.")
    return list(zip(sources, targets, strict=True))
