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
    """Return `path`, or `path` with ".gz". Raise BadInput if neither is a file."""
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    contents = "there is no such folder"
    if path.parent.is_dir():
        names = sorted(entry.name for entry in path.parent.iterdir())
        listing = ", ".join(names[:8]) or "nothing"
        contents = f"the folder holds {listing}" + ", …" * (len(names) > 8)
    raise BadInput(
        f"there is no file {path} (nor {path.name}.gz): {contents}; check data.root and the names "
        "of the files in data.source."
    )


def read_text(path: Path) -> str:
    """Read a plain or gzipped file of UTF-8; line ends stay as they are."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadInput(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not valid UTF-8; "
            f"convert the file, for example iconv -f latin1 -t utf-8."
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path} cannot be read ({error}); fetch or unpack it again.") from error


def read_lines(path: Path) -> list[str]:
    r"""Read a file's lines, split on "\n" only; a "\r" before it is removed.

    Other line separators of Unicode are part of real text: splitting there would misalign the
    two sides.
    """
    lines = read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]
