"""A cache of prepared data on disk, addressed by the sha256 of every input they were made from.

An entry is a folder of plain files: `NAME.json`, `NAME.npy` (no pickle) and `manifest.json` with
the key and the sha256 of each file. It is moved into the cache in one step. So a reader sees a
complete entry or none, and two processes may prepare the same data at the same time.
"""

import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from attention_zoo.errors import UserError

log = logging.getLogger(__name__)


class CacheEntry(NamedTuple):
    """The values of an entry by name, their sha256, and a note if the entry had to be repaired."""

    values: dict[str, Any]
    fingerprint: str
    note: str | None = None


def sha256_of_file(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Return the hex sha256 of a plain value; the order of its keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_of_code(folder: Path) -> str:
    """Return the hex sha256 of the Python files under `folder`: other code makes other data."""
    code = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))
    return hashlib.sha256(code).hexdigest()


def function_key(function: Callable[..., Any]) -> dict[str, str] | None:
    """Return what tells a function from all others: its name, and the sha256 of its file.

    A function that cannot be imported by its name has no such key: a lambda, a function inside
    another one, one of a script, an object that is called.
    """
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    owner = getattr(function, "__self__", None)
    if isinstance(owner, type):  # A class method is that of the class, which may inherit it.
        module, name = owner.__module__, f"{owner.__qualname__}.{function.__name__}"
    found: Any = sys.modules.get(module)
    file = getattr(found, "__file__", None)
    for part in name.split("."):
        found = getattr(found, part, None)
    if module == "__main__" or found != function or file is None:
        return None
    return {"name": f"{module}.{name}", "file": sha256_of_file(Path(file))}


def is_plain(value: Any) -> bool:
    """Return whether JSON can hold a value."""
    try:
        json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):
        return False
    return True


@contextmanager
def refuse_unwritable_cache(cache_dir: Path) -> Iterator[None]:
    """Raise a `UserError` that asks for another folder if the cache cannot be written to."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"prepared data cannot be written to {cache_dir} ({error.strerror or error}); "
            "choose a folder that can be written to: paths.cache=FOLDER."
        ) from error


class ArrayWriter:
    """Writes a vector of integers to a `.npy` file, a part after the other.

    So a vector may be larger than the memory. It is complete when the context ends.

    Args:
        path: the file.
        max_value: the largest value; it decides on the type, the smallest that can hold it.
    """

    def __init__(self, path: Path, *, max_value: int) -> None:
        self.path = path
        self.dtype = np.min_scalar_type(max_value)
        self.length = 0

    def __enter__(self) -> Self:
        with refuse_unwritable_cache(self.path.parent):
            self._file = self.path.open("wb")
            self._write_header()
        return self

    def write(self, values: Sequence[int] | np.ndarray) -> None:
        """Append values."""
        with refuse_unwritable_cache(self.path.parent):
            self._file.write(np.asarray(values, dtype=self.dtype).tobytes())
        self.length += len(values)

    def __exit__(self, *_: object) -> None:
        with refuse_unwritable_cache(self.path.parent), self._file:
            # numpy pads the header, so that it has the same size for every length.
            self._file.seek(0)
            self._write_header()

    def _write_header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, header)


def get_or_build(
    cache_dir: Path, key: Mapping[str, Any], build: Callable[[Path], Mapping[str, Any]]
) -> CacheEntry:
    """Return the entry of `key`; build and store it where it is missing or damaged.

    Args:
        cache_dir: the folder of all entries; UserError if it cannot be written to.
        key: every input of `build`, in plain types.
        build: returns the values by name: numpy arrays, or what JSON can hold. Large arrays it
            writes as `NAME.npy` into the folder that it is called with (`ArrayWriter`).
    """
    entry_dir = cache_dir / sha256_of_json(key)[:32]
    note = None
    if entry_dir.exists():
        try:
            return read_entry(entry_dir)
        except (OSError, ValueError, KeyError, TypeError) as error:
            note = f"the cached data in {entry_dir} were damaged ({error}) and were prepared again"
            log.warning("%s.", note)
    with refuse_unwritable_cache(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=cache_dir, prefix=".new-")
    with folder as temporary:
        new_dir = Path(temporary) / "entry"
        new_dir.mkdir()
        values = build(new_dir)
        with refuse_unwritable_cache(cache_dir):
            write_entry(new_dir, key, values)
            if note is not None:
                with suppress(FileNotFoundError):  # another process may have moved it
                    os.replace(entry_dir, Path(temporary) / "damaged")
            try:
                os.replace(new_dir, entry_dir)
            except OSError:
                if not entry_dir.is_dir():  # else another process has stored the same entry
                    raise
            return read_entry(entry_dir)._replace(note=note)


def write_entry(entry_dir: Path, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Write the values as files, then the manifest with the hashes of all files in the folder."""
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            np.save(entry_dir / f"{name}.npy", value, allow_pickle=False)
        else:
            text = json.dumps(value, ensure_ascii=False, sort_keys=True)
            (entry_dir / f"{name}.json").write_text(text, encoding="utf-8", newline="\n")
    files = {path.name: sha256_of_file(path) for path in sorted(entry_dir.iterdir())}
    manifest = json.dumps({"key": dict(key), "files": files}, indent=1, sort_keys=True)
    (entry_dir / "manifest.json").write_text(manifest, encoding="utf-8")


def read_entry(entry_dir: Path) -> CacheEntry:
    """Read an entry. Raise ValueError if a file is not the one that was written.

    Arrays are mapped, not read: they take memory only where they are used.
    """
    files = json.loads((entry_dir / "manifest.json").read_text(encoding="utf-8"))["files"]
    values: dict[str, Any] = {}
    for name, digest in files.items():
        path = entry_dir / name
        if sha256_of_file(path) != digest:
            raise ValueError(f"{name} has changed")
        if path.suffix == ".npy":
            values[path.stem] = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            values[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    return CacheEntry(values, sha256_of_json(files))
