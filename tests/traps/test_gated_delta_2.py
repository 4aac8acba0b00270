"""Gated DeltaNet-2: `gated_delta_2`."""

import torch
from torch import nn

from attention_zoo import create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.masks import TokenSpan
from tests.conformance.numbers import assert_same

DIM, HEADS = 16, 4


def causal(name: str) -> Attention:
    return create_attention(name, dim=DIM, heads=HEADS, role="causal")


def project_steps(attention: Attention, x: torch.Tensor) -> Steps:
    positions = torch.arange(x.shape[1])[None]
    return attention.project_steps(x, positions, ConvolutionRunner(TokenSpan()))


def test_equal_gates_are_the_rate_of_kimi_delta() -> None:
    """With b = w = β it is `kimi_delta`, whose β comes in where the key writes."""
    ours, plain = causal("gated_delta_2"), causal("kimi_delta")
    plain.load_state_dict(ours.state_dict(), strict=False)
    plain.rate.weight = nn.Parameter(torch.randn(1, DIM).expand(HEADS, -1).clone())
    for layer in (ours.erase, ours.write):
        layer.weight = nn.Parameter(plain.rate.weight[:1].expand(DIM, -1).clone())
    x = torch.randn(2, 90, DIM)
    assert_same(ours(x), plain(x))


def test_gates_belong_to_the_erasing_key_and_to_the_value() -> None:
    """The key that writes is a unit vector: no gate makes it shorter."""
    attention = causal("gated_delta_2")
    steps = project_steps(attention, torch.randn(2, 9, DIM))
    torch.testing.assert_close(steps.k.norm(dim=-1), torch.ones(2, HEADS, 9), rtol=1e-3, atol=0.0)
    assert (steps.erase.abs() <= steps.k.abs()).all()


def test_what_is_not_erased_stays_where_more_is_written() -> None:
    """A closed erase gate makes it a sum, a closed write gate makes the state fade."""
    attention = causal("gated_delta_2")
    x = torch.randn(1, 9, DIM)
    attention.erase.weight = nn.Parameter(torch.zeros(DIM, DIM))
    gates = attention.erase(x).sigmoid()
    assert_same(gates, torch.full_like(gates, 0.5))
    attention.write.weight = nn.Parameter(-1e3 * x[0, :1].expand(DIM, -1))
    assert (project_steps(attention, x[:, :1]).v == 0).all()
