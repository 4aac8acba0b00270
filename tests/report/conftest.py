"""A sweep as one is left behind."""

from pathlib import Path

import pytest

from tests.report.folders import write_sweep


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweep"))
