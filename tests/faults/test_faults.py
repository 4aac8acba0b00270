"""Each planted fault turns the named property red, which is green without it."""

from collections.abc import Callable

import pytest
import torch
import torch._dynamo

from tests.faults import decoding, encodings, equations, visibility
from tests.faults.planting import FAULTS, Plant

__all__ = ["decoding", "encodings", "equations", "visibility"]  # They fill FAULTS.


@pytest.mark.parametrize(("plant", "prop"), FAULTS)
def test_a_fault_is_noticed(
    plant: Plant, prop: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    prop()
    plant(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception, torch._dynamo.exc.Unsupported)):
        prop()
