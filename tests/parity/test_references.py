"""Every entry agrees with the package that its card names, in values and in gradients."""

import pytest

from attention_zoo.zoo import ATTENTION, POSITION
from tests.conformance.numbers import default_dtype
from tests.parity.compared import Case, discover, errors


@pytest.mark.parametrize("case", discover(), ids=str)
def test_ours_is_theirs(case: Case) -> None:
    with default_dtype("float32"):
        found = errors(case)
    assert found.forward < 1e-5
    assert found.gradient < 1e-5


def test_every_named_reference_is_compared_with() -> None:
    compared = {(case.entry, case.reference) for case in discover()}
    cards = [registry.card(name) for registry in (ATTENTION, POSITION) for name in registry]
    named = {(card.name, card.reference) for card in cards if card.reference != "closed form"}
    assert not named - compared
