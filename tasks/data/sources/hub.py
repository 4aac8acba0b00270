"""Corpora of the Hugging Face hub, each of which can be read from a folder of files instead."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attention_zoo.errors import BadInput
from attention_zoo.tasks.data.sources.base import SPLITS, Pair, Source
from attention_zoo.tasks.data.sources.parallel_files import ParallelFiles
from attention_zoo.tasks.data.sources.text_files import OneTextFile, TextFiles, cut, text_folder


def load(path: str, config: str | None, revision: str | None, *, expected: str) -> Any:
    """The splits of a data set of the hub.

    Raises BadInput, in one line, where the package `datasets` is missing or the hub does not give
    it.
    """
    remedy = f"data.root=FOLDER reads it from a folder with {expected}"
    try:
        import datasets
    except ImportError:
        raise BadInput(
            f"{path} comes from the Hugging Face hub, which needs the package datasets: "
            f"pip install 'attention-zoo[hub]'; or {remedy}."
        ) from None
    try:
        return datasets.load_dataset(path, config, revision=revision)
    except Exception as error:  # the package raises dozens of types, its dependencies' among them
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BadInput(f"the Hugging Face hub did not give {path} ({reason}); {remedy}.") from error


@contextmanager
def unknown_names_refused(path: str) -> Iterator[None]:
    """Raises BadInput where the data set lacks a split, column or language that is asked for."""
    try:
        yield
    except KeyError as error:
        raise BadInput(
            f"{path} of the Hugging Face hub has no {error}; name its splits and columns in "
            "data.source."
        ) from error


class HubPairs(Source[Pair]):
    """A parallel corpus.

    Args:
        path, config, revision: as `datasets.load_dataset` takes them.
        pair: the languages of source and target, which are the columns' names.
        column: the column that holds the languages as a mapping, where there is one.
        splits: the hub's names of train, valid and test.
        files: what `data.root` finds in a folder (see `ParallelFiles.of_pair`).
        note: what the user should know about the hub's copy.
    """

    def __init__(
        self,
        *,
        path: str,
        pair: Sequence[str],
        splits: Mapping[str, str],
        files: Mapping[str, str | Sequence[str]],
        config: str | None = None,
        revision: str | None = None,
        column: str | None = None,
        note: str | None = None,
    ) -> None:
        super().__init__()
        self.path, self.config, self.revision = path, config, revision
        self.pair = list(pair)
        self.column = column
        self.names = dict(splits)
        self.files = dict(files)
        self.note = note

    def splits(self) -> dict[str, list[Pair]]:
        self.notes = [self.note] if self.note else []
        names = ", ".join(str(self.files[split]) for split in SPLITS)
        expected = (
            f"the files {names} in {' and '.join(self.pair)}, such as train.{self.pair[0]}[.gz]"
        )
        corpus = load(self.path, self.config, self.revision, expected=expected)
        with unknown_names_refused(self.path):
            return {split: self._pairs(corpus[self.names[split]]) for split in SPLITS}

    def _pairs(self, rows: Any) -> list[Pair]:
        if self.column is not None:
            source, target = self.pair
            return [(row[source], row[target]) for row in rows[self.column]]
        return list(zip(*(rows[language] for language in self.pair), strict=True))

    def key(self) -> dict[str, Any]:
        return {
            "source": "hub_pairs",
            "path": self.path,
            "config": self.config,
            "revision": self.revision,
            "pair": self.pair,
            "splits": self.names,
        }

    def in_folder(self, root: str | Path) -> ParallelFiles:
        if not Path(root).is_dir():
            raise BadInput(
                f"there is no folder {root}; give data.root=FOLDER the one with the files."
            )
        return ParallelFiles.of_pair(self.pair, self.files, root)


class HubTexts(Source[str]):
    """Running text: the rows of a split, joined, are one document.

    Args:
        path, config, revision: as `datasets.load_dataset` takes them.
        column: the column of the text.
        splits: the hub's names of train, valid and test; a single name is cut by `files.shares`.
        files: what `data.root` finds in a folder (see `text_folder`).
    """

    def __init__(
        self,
        *,
        path: str,
        splits: Mapping[str, str] | str,
        files: Mapping[str, Any],
        config: str | None = None,
        revision: str | None = None,
        column: str = "text",
    ) -> None:
        super().__init__()
        self.path, self.config, self.revision = path, config, revision
        self.column = column
        self.names = splits if isinstance(splits, str) else dict(splits)
        self.files = dict(files)

    def splits(self) -> dict[str, list[str]]:
        names = [self.files["file"]] if "file" in self.files else [self.files[s] for s in SPLITS]
        expected = f"the files {', '.join(map(str, names))} (plain or .gz)"
        corpus = load(self.path, self.config, self.revision, expected=expected)
        with unknown_names_refused(self.path):
            if not isinstance(self.names, str):
                return {
                    split: ["".join(corpus[self.names[split]][self.column])] for split in SPLITS
                }
            content = "".join(corpus[self.names][self.column]).encode()
        parts = [part.decode() for part in cut(content, self.files["shares"])]
        note = "the text is cut in two: the test split is the valid split"
        self.notes = [note] if len(parts) == 2 else []
        return dict(zip(SPLITS, ([parts[0]], [parts[1]], [parts[-1]]), strict=True))

    def key(self) -> dict[str, Any]:
        return {
            "source": "hub_texts",
            "path": self.path,
            "config": self.config,
            "revision": self.revision,
            "column": self.column,
            "splits": self.names,
            "shares": list(self.files.get("shares", [])),
        }

    def in_folder(self, root: str | Path) -> TextFiles | OneTextFile:
        return text_folder(self.files, root)
