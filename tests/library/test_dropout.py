"""Dropout with random numbers of 16 bits."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from attention_zoo.models.dropout import Dropout


@pytest.mark.parametrize("probability", [0.01, 0.1, 0.15, 0.5, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_elements_are_kept_by_their_probability(probability, dtype):
    torch.manual_seed(0)
    out = Dropout(probability)(torch.ones(1001, 999, dtype=dtype))
    kept, expected = out != 0, 1.0 - probability
    # Six standard deviations of a share of a million draws.
    tolerance = 6 * (expected * probability / kept.numel()) ** 0.5
    assert kept.double().mean().item() == pytest.approx(expected, abs=tolerance)
    assert out.double().mean().item() == pytest.approx(1.0, abs=tolerance / expected)
    assert out[kept].unique().item() == pytest.approx(1.0 / expected, rel=1e-3)
    # Rows and columns are independent: neighbours are kept together by chance alone.
    for pair in (kept[1:] & kept[:-1], kept[:, 1:] & kept[:, :-1], kept[:, 4:] & kept[:, :-4]):
        assert pair.double().mean().item() == pytest.approx(expected**2, abs=2 * tolerance)


def test_the_gradient_has_the_same_elements():
    x = torch.randn(7, 13, requires_grad=True)
    out = Dropout(0.3)(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient * x, out)


def test_a_seed_repeats_what_is_dropped_also_under_checkpointing():
    dropout, x = Dropout(0.5), torch.randn(3, 5, 7, requires_grad=True)
    torch.manual_seed(2)
    out = dropout(x)
    torch.manual_seed(2)
    again = checkpoint(dropout, x, use_reentrant=False)
    assert torch.equal(out, again)
    assert not torch.equal(dropout(x), out)
    (gradient,) = torch.autograd.grad(again.sum(), x)
    torch.testing.assert_close(gradient * x, out)


@pytest.mark.parametrize("shape", [(0,), (), (1,), (2, 0, 3), (5,)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_shapes_and_types_are_kept(shape, dtype):
    out = Dropout(0.5)(torch.ones(shape, dtype=dtype))
    assert (out.shape, out.dtype) == (shape, dtype)
    assert set(out.flatten().tolist()) <= {0.0, 2.0}


@pytest.mark.parametrize("probability", [0.0, 1e-6, 1.0])
def test_probabilities_near_0_and_1_are_those_of_pytorch(probability):
    x = torch.randn(64, 64)
    torch.manual_seed(3)
    out = Dropout(probability)(x)
    torch.manual_seed(3)
    assert torch.equal(out, nn.Dropout(probability)(x))


def test_in_place_is_in_place():
    x = torch.randn(64, 64)
    assert Dropout(0.5, inplace=True)(x) is x
    assert (x == 0).any()


def test_evaluation_drops_nothing():
    x = torch.randn(4, 4)
    assert torch.equal(Dropout(0.5).eval()(x), x)


def test_it_compiles_into_one_graph():
    compiled = torch.compile(Dropout(0.5), backend="eager", fullgraph=True)
    assert set(compiled(torch.ones(8, 8)).flatten().tolist()) == {0.0, 2.0}
