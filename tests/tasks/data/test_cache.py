import json
import logging
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.cache import CacheEntry, get_or_build

KEY = {"source": "made", "size": 3}


def build(folder: Path | None = None) -> dict[str, object]:
    return {"ids": np.arange(6, dtype=np.int32), "lines": [["ç", "П"], ["a", ""]]}


def unexpected_build(folder: Path) -> dict[str, object]:
    raise AssertionError("the entry is there and must not be built again")


def slow_build(folder: Path, results) -> None:
    def slow(_) -> dict[str, object]:
        time.sleep(0.3)
        return build()

    results.put(get_or_build(folder, KEY, slow).fingerprint)


def check(entry: CacheEntry) -> None:
    assert entry.values["lines"] == [["ç", "П"], ["a", ""]]
    assert entry.values["ids"].dtype == np.int32
    np.testing.assert_array_equal(entry.values["ids"], np.arange(6))


def only_entry(folder: Path) -> Path:
    (entry_dir,) = folder.iterdir()
    return entry_dir


def test_a_second_call_reads_what_the_first_built(tmp_path: Path) -> None:
    first, second = (
        get_or_build(tmp_path, KEY, build),
        get_or_build(tmp_path, KEY, unexpected_build),
    )
    check(first)
    check(second)
    assert first.fingerprint == second.fingerprint
    assert second.note is None


def test_other_inputs_are_another_entry(tmp_path: Path) -> None:
    one = get_or_build(tmp_path, KEY, build)
    other = get_or_build(tmp_path, KEY | {"size": 4}, lambda _: build() | {"lines": []})
    assert one.fingerprint != other.fingerprint
    assert len(list(tmp_path.iterdir())) == 2


def test_the_fingerprint_is_of_the_data_not_of_the_key(tmp_path: Path) -> None:
    assert (
        get_or_build(tmp_path, KEY, build).fingerprint
        == get_or_build(tmp_path, KEY | {"size": 4}, build).fingerprint
    )


def test_files_are_plain(tmp_path: Path) -> None:
    get_or_build(tmp_path, KEY, build)
    entry_dir = only_entry(tmp_path)
    assert sorted(path.name for path in entry_dir.iterdir()) == [
        "ids.npy",
        "lines.json",
        "manifest.json",
    ]
    assert json.loads((entry_dir / "manifest.json").read_text())["key"] == KEY
    np.load(entry_dir / "ids.npy", allow_pickle=False)


def truncate(entry_dir: Path) -> None:
    (entry_dir / "ids.npy").write_bytes((entry_dir / "ids.npy").read_bytes()[:-4])


def change(entry_dir: Path) -> None:
    (entry_dir / "lines.json").write_text("[]")


def remove(entry_dir: Path) -> None:
    (entry_dir / "ids.npy").unlink()


def lose_manifest(entry_dir: Path) -> None:
    (entry_dir / "manifest.json").unlink()


def garble_manifest(entry_dir: Path) -> None:
    (entry_dir / "manifest.json").write_text("{")


@pytest.mark.parametrize("damage", [truncate, change, remove, lose_manifest, garble_manifest])
def test_a_damaged_entry_is_built_again_with_a_note(damage, tmp_path: Path, caplog) -> None:
    original = get_or_build(tmp_path, KEY, build)
    damage(only_entry(tmp_path))
    with caplog.at_level(logging.WARNING):
        repaired = get_or_build(tmp_path, KEY, build)
    check(repaired)
    assert repaired.fingerprint == original.fingerprint
    assert repaired.note is not None and "damaged" in repaired.note
    assert "damaged" in caplog.text
    check(get_or_build(tmp_path, KEY, unexpected_build))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        get_or_build(tmp_path, KEY, unexpected_build)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damaged", [False, True])
def test_processes_that_build_at_once_agree(damaged: bool, tmp_path: Path) -> None:
    if damaged:
        get_or_build(tmp_path, KEY, build)
        truncate(only_entry(tmp_path))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=slow_build, args=(tmp_path, results)) for _ in range(3)]
    for process in processes:
        process.start()
    fingerprints = {results.get() for _ in processes}
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(fingerprints) == 1
    check(get_or_build(tmp_path, KEY, unexpected_build))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to .*file.*paths\.cache=FOLDER"):
        get_or_build(tmp_path / "file", KEY, build)
