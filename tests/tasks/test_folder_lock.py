"""The lock of a folder, within a process and between two."""

import errno
import os
import signal
import time

import pytest

from attention_zoo.errors import UserError
from attention_zoo.tasks import folder_lock
from attention_zoo.tasks.folder_lock import locked_folder


def wait_for(file):
    while not file.exists():
        time.sleep(0.01)


def test_a_locked_folder_is_refused_with_its_owner_until_it_is_free(tmp_path):
    folder = tmp_path / "new" / "run"
    with locked_folder(folder, "hydra.run.dir"):
        message = f"{folder} is in use by process {os.getpid()} on .*: .* another hydra.run.dir"
        for _ in range(2):  # A refusal does not lose the owner's name.
            with pytest.raises(UserError, match=message), locked_folder(folder, "hydra.run.dir"):
                raise AssertionError
        with locked_folder(folder.parent, "hydra.sweep.dir"):
            pass
    with locked_folder(folder, "hydra.run.dir"):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path):
    child = os.fork()
    if not child:
        with locked_folder(tmp_path, "hydra.run.dir"):
            (tmp_path / "locked").touch()
            time.sleep(60)
        os._exit(1)
    try:
        wait_for(tmp_path / "locked")
        refused = pytest.raises(UserError, match=f"process {child} on")
        with refused, locked_folder(tmp_path, "hydra.run.dir"):
            raise AssertionError
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with locked_folder(tmp_path, "hydra.run.dir"):
        pass


def test_a_worker_that_outlives_its_parent_holds_no_lock(tmp_path):
    with locked_folder(tmp_path, "hydra.run.dir"):
        worker = os.fork()
        if not worker:
            (tmp_path / "started").touch()
            time.sleep(60)
            os._exit(1)
        wait_for(tmp_path / "started")
    try:
        with locked_folder(tmp_path, "hydra.run.dir"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_written_to(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(folder_lock.fcntl, "flock", flock)
    with locked_folder(tmp_path, "hydra.run.dir"), locked_folder(tmp_path, "hydra.run.dir"):
        pass


def test_a_folder_that_cannot_be_made_is_left_to_what_writes_there(tmp_path):
    (tmp_path / "file").touch()
    with locked_folder(tmp_path / "file" / "run", "hydra.run.dir"):
        pass


def test_errors_within_are_those_of_the_caller(tmp_path):
    with pytest.raises(FileNotFoundError), locked_folder(tmp_path, "hydra.run.dir"):
        raise FileNotFoundError
