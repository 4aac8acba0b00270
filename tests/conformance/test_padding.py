"""What stands at padded positions does not matter."""

import pytest
import torch

from attention_zoo.masks import Mask
from tests.conformance.cases import Case, over, plain_cases
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
