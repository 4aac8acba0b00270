"""Entries are modules like any other: saved, copied, compiled, in mixed precision."""

import copy
import io
from operator import attrgetter

import torch
from torch import Tensor, nn

from attention_zoo.masks import Mask
from attention_zoo.zoo import ATTENTION
from tests.conformance.cases import (
    DIM,
    Case,
    backends,
    over,
    over_values,
    plain_cases,
    positioned_cases,
)
from tests.conformance.configs import parameters
from tests.conformance.definition import key_mask
from tests.conformance.numbers import assert_same, default_dtype, values_and_gradients


def addresses(module: nn.Module) -> set[int]:
    return {parameter.data_ptr() for parameter in module.parameters()}


def padded(case: Case, length: int) -> Mask:
    return Mask(key_mask=key_mask("left", 2, length)) if case.honours("key_mask") else Mask()


@over(positioned_cases())
def test_state_dict_round_trip(case: Case) -> None:
    ours, theirs = case.attention(), case.attention()
    inputs = case.inputs(7)
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    theirs.load_state_dict(torch.load(file, weights_only=True))
    assert_same(theirs(*inputs), ours(*inputs))


@over(positioned_cases())
def test_a_copy_is_equal_and_apart(case: Case) -> None:
    ours = case.attention()
    theirs = copy.deepcopy(ours)
    inputs = case.inputs(7)
    out = ours(*inputs)
    assert_same(theirs(*inputs), out)
    assert addresses(ours).isdisjoint(addresses(theirs))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(1.0)
    assert_same(ours(*inputs), out)
    # What has no parameters has nothing that could differ.
    assert torch.equal(theirs(*inputs), out) is not bool(addresses(theirs))


@over(plain_cases())
def test_two_of_one_kind_share_nothing(case: Case) -> None:
    assert addresses(case.attention()).isdisjoint(addresses(case.attention()))


@over_values(
    "masked",
    [True, False],
    (case for case in positioned_cases() if len(backends(case.name)) > 1),
)
def test_backends_agree(case: Case, masked: bool) -> None:
    inputs = case.inputs(9)
    mask = padded(case, 9) if masked else Mask()
    reference, *others = [case.attention(**backend) for backend in backends(case.name)]
    results = []
    for attention in (reference, *others):
        attention.load_state_dict(reference.state_dict())
        results.append(
            values_and_gradients(
                lambda *args, attention=attention: attention(*args, mask=mask), attention, *inputs
            )
        )
    for other in results[1:]:
        assert_same(other, results[0])


@over(plain_cases())
def test_dropout_only_drops_in_training(case: Case) -> None:
    attention = case.attention().eval()
    inputs = case.inputs(9)
    assert_same(attention(*inputs), attention(*inputs))
    if "dropout" in parameters(ATTENTION[case.name]):
        attention = case.attention(dropout=0.5)
        assert not torch.equal(attention(*inputs), attention(*inputs))
        attention.eval()
        assert_same(attention(*inputs), attention(*inputs))


@over(
    (case for case in plain_cases() if case.role in (case.card.roles[0], "cross")),
    kind=attrgetter("family_kind"),
)
def test_the_whole_graph_compiles(case: Case) -> None:
    """In one role of self-attention, which differ by their mask, and in cross-attention."""
    torch.compiler.reset()
    attention = case.attention()
    inputs = case.inputs(9)
    mask = padded(case, 9)
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    assert_same(
        values_and_gradients(lambda *args: compiled(*args, mask=mask), attention, *inputs),
        values_and_gradients(lambda *args: attention(*args, mask=mask), attention, *inputs),
    )


@over(plain_cases(), kind=attrgetter("family_kind"))
def test_bfloat16_stays_near_float32(case: Case) -> None:
    """The output by three of bfloat16's roundings of 2⁻⁸, gradients by a few more.

    Of three draws the middle one counts: where a sum of few products happens to be near zero, a
    norm or a quotient blows its roundings up. What chooses by scores may choose otherwise where
    they are close: then most tokens must be near.
    """
    with default_dtype("float32"):
        draws = [bfloat16_errors(case) for _ in range(3)]
    errors = torch.tensor(draws).median(dim=0).values
    assert errors[0] < (4 if case.card.chooses else 3) * 2**-8
    assert case.card.chooses or (errors[1:] < 6e-2).all()


def bfloat16_errors(case: Case) -> list[float]:
    """Relative, of the output and of each gradient; heads have some width."""
    attention = case.attention(dim=4 * DIM)
    inputs = case.inputs(129, dim=4 * DIM)
    mask = padded(case, 129)

    def results() -> list[Tensor]:
        return values_and_gradients(lambda *args: attention(*args, mask=mask), attention, *inputs)

    expected = results()
    with torch.autocast("cpu", torch.bfloat16):
        ours = results()
    errors = [(a.float() - b).norm() / b.norm() for a, b in zip(ours, expected, strict=True)]
    if case.card.chooses:
        off = (ours[0].float() - expected[0]).norm(dim=-1)
        errors[0] = (off / expected[0].norm(dim=-1).clamp(min=1e-6)).median()
    return [error.item() for error in errors]
