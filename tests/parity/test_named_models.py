"""Named models of transformers give the logits of ours, from the same weights."""

import pytest

from tests.conformance.cases import mark_exhaustive
from tests.conformance.numbers import default_dtype
from tests.parity.models import NamedModel, differences, discover_models


@pytest.mark.parametrize(
    "case",
    mark_exhaustive(((case,), case.build.__module__) for case in discover_models()),
    ids=str,
)
def test_logits_are_theirs(case: NamedModel) -> None:
    with default_dtype("float32"):
        found = differences(case)
    assert found.one_pass < 1e-5
    assert found.decoding < 1e-5
