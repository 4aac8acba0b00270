"""Refuse what cannot fit into the memory of this machine, before it is filled."""

import os
from contextlib import suppress
from pathlib import Path

from attention_zoo.errors import UserError

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


def host_memory_bytes() -> int | None:
    """Return the memory that this process may use at most; None if the system does not say."""
    limits = []
    with suppress(OSError, ValueError, AttributeError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):  # The limit may be "max".
        limits.append(int(CGROUP_LIMIT.read_text()))
    return min(limits, default=None)


def check_memory(needed: int, subject: str, remedy: str) -> None:
    """Raise UserError if a subject needs more bytes than this machine has."""
    available = host_memory_bytes()
    if available is not None and needed > available:
        raise UserError(
            f"{subject} would take at least {needed / 2**30:,.0f} GiB, and this machine has "
            f"{available / 2**30:,.0f} GiB of memory; {remedy}."
        )
