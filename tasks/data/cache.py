"""Prepared data on disk, found by the sha256 of everything they were made from.

An entry is a folder of plain files: `NAME.json`, `NAME.npy` (no pickle) and `manifest.json` with
the key and the sha256 of each file. It is written beside its place and moved there in one step,
so that a reader sees a whole entry or none, and two processes that prepare the same data at once
do no harm.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attention_zoo.errors import UserError

log = logging.getLogger(__name__)

Values = Mapping[str, Any]


class Entry(NamedTuple):
    """What the cache gives: the values by name, their sha256, and what happened to the entry."""

    values: dict[str, Any]
    fingerprint: str
    note: str | None


class Damaged(Exception):
    """An entry whose files are not the ones that were written."""


def sha256_of_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Hex sha256 of a plain value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of_code(folder: Path) -> str:
    """Hex sha256 of the Python files under `folder`: data made by other code are other data."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def fetch(folder: Path, key: Mapping[str, Any], build: Callable[[], Values]) -> Entry:
    """The entry of `key` under `folder`; built and stored where there is none, or a damaged one.

    Args:
        folder: where entries are.
        key: every input of `build`, in plain types.
        build: gives the values by name: numpy arrays, or what JSON can hold.

    Raises UserError where the folder cannot be written.
    """
    digest = sha256_of_json(key)
    place = folder / digest[:32]
    note = None
    if place.exists():
        try:
            return read(place, note=None)
        except Damaged as damage:
            note = f"the cached data in {place} were damaged ({damage}) and have been made anew"
            log.warning("%s.", note)
    values = build()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as temporary:
            made = Path(temporary) / "entry"
            write(made, key, values)
            entry = read(made, note=note)
            if note is not None:
                with suppress(FileNotFoundError):  # another process may have done so
                    os.replace(place, Path(temporary) / "damaged")
            install(made, place)
    except OSError as error:
        raise UserError(
            f"prepared data cannot be written to {folder} ({error.strerror or error}); "
            "name a folder that can: paths.cache=FOLDER."
        ) from error
    return entry


def install(made: Path, place: Path) -> None:
    """Moves a written entry to its place, unless another process has put the same there."""
    try:
        os.replace(made, place)
    except OSError:
        if not place.is_dir():
            raise
        shutil.rmtree(made)


def write(place: Path, key: Mapping[str, Any], values: Values) -> None:
    """Writes the values as files, then the manifest that vouches for them."""
    place.mkdir()
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            np.save(place / f"{name}.npy", value, allow_pickle=False)
        else:
            text = json.dumps(value, ensure_ascii=False, sort_keys=True)
            (place / f"{name}.json").write_text(text, encoding="utf-8", newline="\n")
    files = {path.name: sha256_of_file(path) for path in sorted(place.iterdir())}
    manifest = json.dumps({"key": dict(key), "files": files}, indent=1, sort_keys=True)
    (place / "manifest.json").write_text(manifest, encoding="utf-8")


def read(place: Path, *, note: str | None) -> Entry:
    """Reads an entry whole. Raises Damaged where a file is missing or is not what was written."""
    values: dict[str, Any] = {}
    try:
        files = json.loads((place / "manifest.json").read_text(encoding="utf-8"))["files"]
        for name, digest in files.items():
            path = place / name
            if sha256_of_file(path) != digest:
                raise Damaged(f"{name} has changed")
            if path.suffix == ".npy":
                values[path.stem] = np.load(path, allow_pickle=False)
            else:
                values[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error
    return Entry(values, sha256_of_json(files), note)
