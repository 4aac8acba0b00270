"""Corpora of the Hugging Face hub, each of which can be read from a folder of files instead."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attention_zoo.errors import BadInput
from attention_zoo.factory import typed_options
from attention_zoo.tasks.data.sources.base import SPLITS, Pair, Source, Split
from attention_zoo.tasks.data.sources.parallel_files import ParallelFiles
from attention_zoo.tasks.data.sources.text_files import OneTextFile, TextFiles, cut_text


class HubSource(Source[Split]):
    """A dataset of the hub.

    Args:
        path, config, revision: as `datasets.load_dataset` takes them.
        splits: the hub's names of train, valid and test.
        files: the names of the files in the folder `data.root`.
    """

    file_hint: str

    @typed_options
    def __init__(
        self,
        *,
        path: str,
        splits: Mapping[str, str] | str,
        files: Mapping[str, Any],
        config: str | None = None,
        revision: str | None = None,
    ) -> None:
        self.path, self.config, self.revision = path, config, revision
        self.split_names: Any = splits if isinstance(splits, str) else dict(splits)
        self.files = dict(files)

    def splits(self) -> dict[str, Split]:
        corpus = self.load_corpus()
        try:
            return self.read_corpus(corpus)
        except KeyError as error:
            raise BadInput(
                f"{self.path} of the Hugging Face hub has no {error}; name its splits and columns "
                "in data.source."
            ) from error

    def load_corpus(self) -> Any:
        """Load all splits. Raise BadInput if the package `datasets` is missing or the hub fails."""
        names = ", ".join(str(self.files[x]) for x in ("file", *SPLITS) if x in self.files)
        remedy = f"data.root=FOLDER reads it from a folder with the files {names} {self.file_hint}"
        try:
            import datasets
        except ImportError:
            raise BadInput(
                f"{self.path} comes from the Hugging Face hub, which needs the package datasets: "
                f"pip install 'attention-zoo[hub]'; or {remedy}."
            ) from None
        try:
            return datasets.load_dataset(self.path, self.config, revision=self.revision)
        except Exception as error:  # of dozens of types, those of its dependencies included
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise BadInput(
                f"the Hugging Face hub did not give {self.path} ({reason}); {remedy}."
            ) from error

    @abstractmethod
    def read_corpus(self, corpus: Any) -> dict[str, Split]:
        """Return the splits of a loaded dataset. Raise KeyError for a name that it lacks."""

    @abstractmethod
    def from_folder(self, root: str | Path) -> Source[Any]:
        """Return the same text, read from the files in a folder."""

    def with_root(self, root: str | Path) -> Source[Split]:
        if not Path(root).is_dir():
            raise BadInput(
                f"there is no folder {root}; give data.root=FOLDER the one with the files."
            )
        return self.from_folder(root)

    def cache_key(self) -> dict[str, Any]:
        key = {"path": self.path, "config": self.config, "revision": self.revision}
        return {**key, "splits": self.split_names}


class HubPairs(HubSource[list[Pair]]):
    """A parallel corpus.

    Args:
        pair: the languages of source and target, which are the columns' names.
        column: the column that maps languages to lines, if there is one.
        options: of `HubSource`; `files` as in `ParallelFiles.from_patterns`.
    """

    @typed_options
    def __init__(self, *, pair: Sequence[str], column: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.pair = list(pair)
        self.target_language = self.pair[-1]
        self.column = column
        self.file_hint = f"in {' and '.join(pair)}, such as train.{pair[0]}[.gz]"

    def read_corpus(self, corpus: Any) -> dict[str, list[Pair]]:
        result = {}
        source, target = self.pair
        for split in SPLITS:
            rows = corpus[self.split_names[split]]
            if self.column is None:
                result[split] = list(zip(rows[source], rows[target], strict=True))
            else:
                result[split] = [(row[source], row[target]) for row in rows[self.column]]
        return result

    def cache_key(self) -> dict[str, Any]:
        return {"source": "hub_pairs", "pair": self.pair, **super().cache_key()}

    def from_folder(self, root: str | Path) -> ParallelFiles:
        return ParallelFiles.from_patterns(self.pair, self.files, root)


class HubTexts(HubSource[list[str]]):
    """Running text: the rows of a split, joined, are one document.

    Args:
        column: the column of the text.
        options: of `HubSource`. A single name in `splits` is cut by `files.fractions`. `files` are
            a `file` and its `fractions`, or a name for each split.
    """

    file_hint = "(plain or .gz)"

    @typed_options
    def __init__(self, *, column: str = "text", **options: Any) -> None:
        super().__init__(**options)
        self.column = column

    def read_corpus(self, corpus: Any) -> dict[str, list[str]]:
        if not isinstance(self.split_names, str):
            return {s: ["".join(corpus[self.split_names[s]][self.column])] for s in SPLITS}
        text = "".join(corpus[self.split_names][self.column])
        texts = cut_text(text, self.files["fractions"])
        if len(texts) == 2:
            self.notes = ["the text is cut in two: the test split is the valid split"]
        return {"train": [texts[0]], "valid": [texts[1]], "test": [texts[-1]]}

    def cache_key(self) -> dict[str, Any]:
        key = {"column": self.column, "fractions": list(self.files.get("fractions", []))}
        return {"source": "hub_texts", **key, **super().cache_key()}

    def from_folder(self, root: str | Path) -> Source[Any]:
        kind = OneTextFile if "file" in self.files else TextFiles
        return kind(**self.files, root=root)
