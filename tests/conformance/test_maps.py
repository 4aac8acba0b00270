"""The weights that are shown are the weights that are used, in the entry's own terms."""

import torch

from attention_zoo.masks import Mask
from tests.conformance.cases import Case, over, over_values, plain_cases, positioned_cases
from tests.conformance.definition import key_mask, visible
from tests.conformance.numbers import assert_same


@over_values("masked", [True, False], positioned_cases())
def test_the_map_times_values_is_the_output(case: Case, masked: bool) -> None:
    attention = case.attention()
    queries, keys = (5, 9) if case.role == "cross" else (9, 9)
    inputs = case.inputs(queries, keys)
    masked = masked and case.honours("key_mask")
    mask = Mask(key_mask=key_mask("left", 2, keys)) if masked else Mask()
    weights = attention.attention_map(*inputs, mask=mask)
    assert weights.shape == (2, attention.num_maps, queries, keys)
    sees = visible(attention, mask, 2, queries, keys)[:, None].expand_as(weights)
    assert (weights[~sees] == 0).all()
    attended = attention.apply_weights(weights, attention.values(*inputs, mask=mask))
    given = attention.position.value_bias(
        weights, torch.arange(queries)[None], torch.arange(keys)[None]
    )
    attended = attended if given is None else attended + given
    assert_same(attention.project_output(attended, inputs[0]), attention(*inputs, mask=mask))
    if case.position is not None:
        return  # The card speaks of the weights without an encoding.
    sums, ones = weights.sum(dim=-1), sees.any(dim=-1).to(weights.dtype)
    if case.card.weights == "distribution":
        assert (weights >= 0).all()
        counted = torch.ones(2, queries, dtype=torch.bool)
        if case.card.chooses and case.role != "cross" and mask.key_mask is not None:
            # It need not choose anything for what stands at padded positions.
            counted = mask.key_mask
        assert_same(sums.transpose(1, 2)[counted], ones.transpose(1, 2)[counted])
    else:
        assert not torch.allclose(sums, ones)


@over(plain_cases())
def test_weights_have_the_signs_that_the_card_says(case: Case) -> None:
    """Not every draw of parameters has negative weights, where there may be some."""
    found = []
    for _ in range(8):
        attention = case.attention()
        with torch.no_grad():
            for parameter in attention.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
        found.append(bool((attention.attention_map(*case.inputs(33)) < 0).any()))
    assert any(found) is (case.card.weights == "signed")


@over(case for case in positioned_cases() if case.role != "cross")
def test_the_map_takes_the_positions_it_is_given(case: Case) -> None:
    """Reversed, and spread out: what matters is that the output takes them too."""
    attention = case.attention()
    (x,) = case.inputs(9)
    positions = torch.arange(0, 27, 3).flip(0)[None]
    weights = attention.attention_map(x, positions=positions)
    attended = attention.apply_weights(weights, attention.values(x, positions=positions))
    given = attention.position.value_bias(weights, positions, positions)
    attended = attended if given is None else attended + given
    assert_same(attention.project_output(attended, x), attention(x, positions=positions))
