"""Attention with sinks by the CPU's kernel equals that by the weights, as do its gradients."""

import pytest
import torch

from attention_zoo.backends.sdpa import attend_with_sinks, weigh_with_sinks

SCALE = 0.3


def draw(score=None):
    """Return q, k, v and the scores of the sinks, which may all be one number."""
    options = {"dtype": torch.float64, "requires_grad": True}
    inputs = [torch.randn(2, 3, 7, 8, **options) for _ in range(3)]
    sinks = torch.randn(3, **options) if score is None else torch.full((3,), score, **options)
    return [*inputs, sinks]


def own(q, k, v, sinks):
    return attend_with_sinks(q, k, v, sinks=sinks, scale=SCALE)


def plain(q, k, v, sinks):
    return weigh_with_sinks(q, k, v, sinks, SCALE)


@pytest.mark.parametrize("score", [None, 0.0, 80.0, -80.0])
def test_values_and_gradients(score):
    inputs = draw(score)
    out, expected = own(*inputs), plain(*inputs)
    assert out.grad_fn.name() == "SinkAttentionBackward"
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    gradients = [torch.autograd.grad(y, inputs, upstream) for y in (out, expected)]
    torch.testing.assert_close(*gradients)


def test_second_gradients():
    inputs = draw()
    second = []
    for function in (own, plain):
        first = torch.autograd.grad(function(*inputs).square().sum(), inputs, create_graph=True)
        second.append(torch.autograd.grad(sum(x.square().sum() for x in first), inputs))
    torch.testing.assert_close(*second)


def test_scores_without_a_gradient():
    *inputs, sinks = draw()
    sinks.requires_grad_(False)
    gradients = [torch.autograd.grad(f(*inputs, sinks).sum(), inputs) for f in (own, plain)]
    torch.testing.assert_close(*gradients)


def test_checkpointing():
    inputs = draw()
    again = torch.utils.checkpoint.checkpoint(own, *inputs, use_reentrant=False)
    found = torch.autograd.grad(again.sum(), inputs)
    torch.testing.assert_close(found, torch.autograd.grad(own(*inputs).sum(), inputs))


def test_inputs_that_depend_on_one_another():
    x, *_, sinks = draw()
    gradients = []
    for function in (own, plain):
        y = x.sin()
        out = function(y, y, y.cos(), sinks)
        gradients.append(torch.autograd.grad(out.square().sum(), x, create_graph=True)[0])
    torch.testing.assert_close(*gradients)


def test_channels_that_are_no_neighbours():
    inputs = draw()
    turned = [x.mT.contiguous().mT for x in inputs[:3]]
    torch.testing.assert_close(own(*turned, inputs[3]), plain(*inputs))


def test_autocast_does_not_reach_gradients_that_are_differentiated():
    inputs = [x.detach().float().requires_grad_() for x in draw()]
    out = own(*inputs)
    expected = torch.autograd.grad(out.sum(), inputs, create_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(out.sum(), inputs, create_graph=True)
    torch.testing.assert_close(found, expected)
