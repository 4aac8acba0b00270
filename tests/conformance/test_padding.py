"""What stands at padded positions does not matter."""

from itertools import product

import pytest
import torch

from attention_zoo.masks import Mask
from tests.conformance.cases import Case, over, over_values, plain_cases
from tests.conformance.definition import key_mask
from tests.conformance.numbers import assert_same


@pytest.mark.parametrize(
    ("side", "length"), [("left", 7), ("left", 65), ("right", 65), ("interior", 65)]
)
@over(case for case in plain_cases() if case.honours("key_mask"))
def test_content_of_padding_is_irrelevant(case: Case, side: str, length: int) -> None:
    attention = case.attention()
    inputs = case.inputs(7 if case.role == "cross" else length, length)
    real = key_mask(side, 2, length)
    source = inputs[-1].requires_grad_()

    def at_real_queries(changed: torch.Tensor) -> torch.Tensor:
        out = attention(*inputs[:-1], changed, mask=Mask(key_mask=real))
        return out if case.role == "cross" else out[real]

    out = at_real_queries(source)
    other = torch.where(real[..., None], source, 100.0 * torch.randn_like(source))
    assert_same(at_real_queries(other), out)
    (gradient,) = torch.autograd.grad(out.sin().sum(), source)
    assert (gradient[~real] == 0).all()
    assert gradient[real].ne(0).any()


def real_tokens(layout: str, length: int) -> torch.Tensor:
    """[2 n] bool: a whole row, and one that is padded here and there."""
    holes = {
        "left": [0] * (length // 3) + [1] * length,
        "interior": [1] * (length // 3) + [0] * (length // 4) + [1] * length,
        "alternating": [1, 0, 1, 1, 0] * length,
        "everywhere": [0, 0, 1, 0, 1, 1, 1] * (length // 14) + [1] * (length // 3) + [0] * length,
    }
    return torch.tensor([[1] * length, holes[layout][:length]]).bool()


@over_values(
    "layout,length",
    product(["alternating", "left", "interior", "everywhere"], [70, 23]),
    (case for case in plain_cases() if case.honours("key_mask")),
    every_entry=True,
)
def test_a_padded_row_is_that_of_its_real_tokens(case: Case, layout: str, length: int) -> None:
    attention = case.attention().eval()
    inputs = case.inputs(7 if case.role == "cross" else length, length)
    real = real_tokens(layout, length)
    positions = (real.cumsum(dim=1) - 1).clamp(min=0)
    if case.role == "cross":
        x, context = inputs
        alone = attention(x[1:], context[1:, real[1]])
        assert_same(attention(x, context, mask=Mask(key_mask=real))[1:], alone)
        return
    (x,) = inputs
    together = attention(x, mask=Mask(key_mask=real), positions=positions)
    alone = attention(x[1:, real[1]])
    assert_same(together[1:, real[1]], alone)
    assert_same(together[0], attention(x[:1])[0])


@over_values(
    "chunks",
    [[9, 1, 1, 1, 11], [1] * 23, [4, 19]],
    (case for case in plain_cases() if case.decodes and case.role == "causal"),
    every_entry=True,
)
def test_a_state_leaves_padding_out(case: Case, chunks: list[int]) -> None:
    attention = case.attention().eval()
    length = sum(chunks)
    (x,) = case.inputs(length)
    real = real_tokens("alternating", length)
    positions = (real.cumsum(dim=1) - 1).clamp(min=0)
    outputs, cache = [], attention.new_cache()
    for chunk in chunks:
        stop = cache.length + chunk
        own = slice(cache.length, stop)
        mask = Mask(key_mask=real[:, :stop])
        outputs.append(attention(x[:, own], mask=mask, positions=positions[:, own], cache=cache))
    decoded = torch.cat(outputs, dim=1)
    assert_same(decoded[1:, real[1]], attention(x[1:, real[1]]))
    assert_same(decoded[0], attention(x[:1])[0])


@over(
    (case for case in plain_cases() if case.packs and case.role != "cross"),
    every_entry=True,
)
def test_padding_inside_packed_sequences(case: Case) -> None:
    attention = case.attention().eval()
    length = 23
    (x,) = case.inputs(length)
    real = real_tokens("alternating", length)
    segment_ids = (torch.arange(length) >= 11).long().expand(2, -1)
    counts = real.cumsum(dim=1)
    positions = (counts - 1 - counts[:, 10:11] * segment_ids).clamp(min=0)
    mask = Mask(key_mask=real, segment_ids=segment_ids)
    together = attention(x, mask=mask, positions=positions)
    for segment in (0, 1):
        own = real[1] & (segment_ids[1] == segment)
        assert_same(together[1:, own], attention(x[1:, own]))
