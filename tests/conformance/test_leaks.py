"""Nothing comes from the future."""

import torch

from tests.conformance.cases import Case, over_values, plain_cases
from tests.conformance.numbers import assert_same

CAUSAL = [case for case in plain_cases() if case.role == "causal"]


@over_values(
    "length,queries",
    [(7, range(7)), (1, [0]), (65, [0, 31, 63, 64])],
    iter(CAUSAL),
    every_entry=True,
)
def test_no_gradient_reaches_the_future(case: Case, length: int, queries: list[int]) -> None:
    attention = case.attention()
    (x,) = case.inputs(length)
    x.requires_grad_()
    out = attention(x)
    for query in queries:
        (gradient,) = torch.autograd.grad(out[:, query].sin().sum(), x, retain_graph=True)
        assert (gradient[:, query + 1 :] == 0).all()
        assert gradient[:, query].ne(0).any(), "a query must see itself"


@over_values("prefix", [65, 1, 7, 64], iter(CAUSAL))
def test_a_prefix_gives_the_prefix_of_the_output(case: Case, prefix: int) -> None:
    attention = case.attention()
    (x,) = case.inputs(67)
    assert_same(attention(x[:, :prefix]), attention(x)[:, :prefix])
