import json
import logging
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.cache import Entry, fetch

KEY = {"source": "made", "size": 3}


def build() -> dict[str, object]:
    return {"ids": np.arange(6, dtype=np.int32), "lines": [["ç", "П"], ["a", ""]]}


def unwanted() -> dict[str, object]:
    raise AssertionError("the entry is there and must not be built again")


def slow_fetch(folder: Path, results) -> None:
    def slow() -> dict[str, object]:
        time.sleep(0.3)
        return build()

    results.put(fetch(folder, KEY, slow).fingerprint)


def check(entry: Entry) -> None:
    assert entry.values["lines"] == [["ç", "П"], ["a", ""]]
    assert entry.values["ids"].dtype == np.int32
    np.testing.assert_array_equal(entry.values["ids"], np.arange(6))


def only_folder(folder: Path) -> Path:
    (place,) = folder.iterdir()
    return place


def test_a_second_fetch_reads_what_the_first_built(tmp_path: Path) -> None:
    first, second = fetch(tmp_path, KEY, build), fetch(tmp_path, KEY, unwanted)
    check(first)
    check(second)
    assert first.fingerprint == second.fingerprint
    assert second.note is None


def test_other_inputs_are_another_entry(tmp_path: Path) -> None:
    one = fetch(tmp_path, KEY, build)
    other = fetch(tmp_path, KEY | {"size": 4}, lambda: build() | {"lines": []})
    assert one.fingerprint != other.fingerprint
    assert len(list(tmp_path.iterdir())) == 2


def test_the_fingerprint_is_of_the_data_not_of_the_key(tmp_path: Path) -> None:
    assert (
        fetch(tmp_path, KEY, build).fingerprint
        == fetch(tmp_path, KEY | {"size": 4}, build).fingerprint
    )


def test_files_are_plain(tmp_path: Path) -> None:
    fetch(tmp_path, KEY, build)
    place = only_folder(tmp_path)
    assert sorted(path.name for path in place.iterdir()) == [
        "ids.npy",
        "lines.json",
        "manifest.json",
    ]
    assert json.loads((place / "manifest.json").read_text())["key"] == KEY
    np.load(place / "ids.npy", allow_pickle=False)


def truncate(place: Path) -> None:
    (place / "ids.npy").write_bytes((place / "ids.npy").read_bytes()[:-4])


def change(place: Path) -> None:
    (place / "lines.json").write_text("[]")


def remove(place: Path) -> None:
    (place / "ids.npy").unlink()


def lose_manifest(place: Path) -> None:
    (place / "manifest.json").unlink()


def garble_manifest(place: Path) -> None:
    (place / "manifest.json").write_text("{")


@pytest.mark.parametrize("damage", [truncate, change, remove, lose_manifest, garble_manifest])
def test_a_damaged_entry_is_built_again_with_a_note(damage, tmp_path: Path, caplog) -> None:
    whole = fetch(tmp_path, KEY, build)
    damage(only_folder(tmp_path))
    with caplog.at_level(logging.WARNING):
        mended = fetch(tmp_path, KEY, build)
    check(mended)
    assert mended.fingerprint == whole.fingerprint
    assert mended.note is not None and "damaged" in mended.note
    assert "damaged" in caplog.text
    check(fetch(tmp_path, KEY, unwanted))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        fetch(tmp_path, KEY, unwanted)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damaged", [False, True])
def test_processes_that_build_at_once_agree(damaged: bool, tmp_path: Path) -> None:
    if damaged:
        fetch(tmp_path, KEY, build)
        truncate(only_folder(tmp_path))
    context_length = multiprocessing.get_context("spawn")
    results = context_length.Queue()
    processes = [
        context_length.Process(target=slow_fetch, args=(tmp_path, results)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    fingerprints = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(fingerprints) == 1
    check(fetch(tmp_path, KEY, unwanted))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to .*file.*paths\.cache=FOLDER"):
        fetch(tmp_path / "file", KEY, build)
