import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

DATA = Path(os.environ.get("ATTENTION_ZOO_DATA", Path(__file__).parents[4] / "shared" / "data"))


@pytest.fixture
def real() -> Callable[[str], Path]:
    """Finds a file or folder of the real text; where it is missing the test is skipped."""

    def find(name: str) -> Path:
        if not (DATA / name).exists():
            pytest.skip(f"the real text {DATA / name} is missing; set ATTENTION_ZOO_DATA")
        return DATA / name

    return find


@pytest.fixture
def real_lines(real: Callable[[str], Path]) -> Callable[[str], list[str]]:
    """The lines of a gzipped file of the real text."""

    def read(name: str) -> list[str]:
        with gzip.open(real(name), "rt", encoding="utf-8", newline="\n") as file:
            return file.read().split("\n")[:-1]

    return read
