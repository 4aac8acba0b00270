import gzip
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def real_lines(real: Callable[[str], Path]) -> Callable[[str], list[str]]:
    """Read the lines of a gzipped file of real text."""

    def read(name: str) -> list[str]:
        with gzip.open(real(name), "rt", encoding="utf-8", newline="\n") as file:
            return file.read().split("\n")[:-1]

    return read
