"""Each planted fault turns the named property red, which is green without it."""

from collections.abc import Callable

import pytest
import torch
import torch._dynamo

from attention_zoo import UserError
from tests.faults import decoding, encodings, equations, projections, visibility
from tests.faults.planting import FAULTS, Plant

__all__ = ["decoding", "encodings", "equations", "projections", "visibility"]  # They fill FAULTS.


@pytest.mark.parametrize(("plant", "prop"), FAULTS)
def test_a_fault_is_noticed(
    plant: Plant, prop: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    prop()
    plant(monkeypatch)
    # The library itself refuses some.
    noticed = AssertionError, pytest.fail.Exception, torch._dynamo.exc.Unsupported, UserError
    with pytest.raises(noticed):
        prop()
