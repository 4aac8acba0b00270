"""Conformance is tested in float64."""

from collections.abc import Iterator

import pytest

from tests.conformance.numbers import default_dtype


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with default_dtype("float64"):
        yield
