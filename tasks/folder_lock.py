"""Lock a folder against a second command that would write the same files."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attention_zoo.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
held: set[int] = set()  # open files


def release_in_child() -> None:
    """Close the locks of the parent, which workers that outlive it would hold on to."""
    while held:
        os.close(held.pop())


if fcntl is not None:
    os.register_at_fork(after_in_child=release_in_child)


@contextmanager
def locked_folder(folder: Path, option: str) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it is missing.

    The lock is one of the operating system, which ends with the process, however that ends. A file
    system without locks is written to without one. `option` names the folder on the command line.

    Raises:
        UserError: another process holds the lock.
    """
    file = open_lock(folder)
    try:
        if file is not None:
            held.add(file)
            take_lock(file, folder, option)
        yield
    finally:
        if file in held:
            held.remove(file)
            os.close(file)


def open_lock(folder: Path) -> int | None:
    """Return the open lock file of a folder; None if the folder cannot be written to."""
    with suppress(OSError):  # What is written first says why.
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    return None


def take_lock(file: int, folder: Path, option: str) -> None:
    """Lock an open file, and write into it which process has done so."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(file, 1000).decode(errors="replace").strip() or "another process"
        raise UserError(
            f"{folder} is in use by {owner}: wait until it ends, or choose another {option}."
        ) from None
    except OSError:  # The file system has no locks.
        return
    with suppress(OSError):  # A full disk
        os.truncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
