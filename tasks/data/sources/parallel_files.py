"""Pairs of lines from pairs of files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.data.cache import sha256_of_file
from attention_zoo.tasks.data.sources.base import SPLITS, Pair
from attention_zoo.tasks.data.sources.files import SplitFiles, find_file, read_lines


class ParallelFiles(SplitFiles[list[Pair]]):
    """Pairs of files: line i of the source file is translated by line i of the target file."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for split, pairs in self.files.items():
            for pair in pairs:
                if isinstance(pair, str) or len(pair) != 2:
                    raise UserError(
                        f"{split} must be pairs of files, [[source, target], …], got {pair!r}; "
                        f"for example data.source.{split}=[[{split}.en,{split}.pt]]."
                    )
        for _, target in self.files["train"][:1]:
            self.target_language = Path(target.removesuffix(".gz")).suffix[1:]

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
        pairs: dict[str, list[list[str]]] = {}
        for split in SPLITS:
            patterns = files[split]
            pairs[split] = [
                [(name if "{}" in name else name + ".{}").replace("{}", code) for code in languages]
                for name in ([patterns] if isinstance(patterns, str) else patterns)
            ]
        return cls(**pairs, root=root)

    def paths(self, split: str) -> list[tuple[Path, Path]]:
        """Return the files of a split. Raise BadInput if one is missing."""
        return [
            (find_file(self.root / source), find_file(self.root / target))
            for source, target in self.files[split]
        ]

    def splits(self) -> dict[str, list[Pair]]:
        return {
            split: [pair for files in self.paths(split) for pair in read_pairs(*files)]
            for split in SPLITS
        }

    def cache_key(self) -> dict[str, Any]:
        hashes = {
            split: [[sha256_of_file(path) for path in pair] for pair in self.paths(split)]
            for split in SPLITS
        }
        return {"source": "parallel_files", "files": hashes, "valid_is_test": self.valid_is_test}

    def location(self, split: str, index: int) -> str:
        for source, target in self.files[split]:
            lines = len(read_lines(find_file(self.root / source)))
            if index < lines:
                return f"{self.root / source} (and {target}), line {index + 1}"
            index -= lines
        raise IndexError(f"the {split} split has no such line.")


def read_pairs(source: Path, target: Path) -> list[Pair]:
    """Read the pairs of two files. Raise BadInput if they are empty or differ in length."""
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
