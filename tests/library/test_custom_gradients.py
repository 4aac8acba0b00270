"""Functions with gradients of their own equal their parts: values, first and second gradients."""

from functools import partial

import pytest
import torch
from torch.nn.functional import pad
from torch.nn.functional import rms_norm as plain_rms_norm

from attention_zoo import custom_gradients
from attention_zoo.attention.recurrent.convolution import convolve
from attention_zoo.custom_gradients import relu_squared, rms_norm, unit_vectors

NAMES = ["relu_squared", "rms_norm", "unit_vectors", "convolution"]
WIDTH, EPSILON = 7, 1e-3


def plain_relu_squared(x):
    return x.clamp(min=0) ** 2


def plain_unit_vectors(x):
    return 3.0 * x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def convolve_rows(x, taps):
    """Convolve all rows as the tokens of two sequences, after zeros."""
    tokens = x.reshape(1, x.numel() // WIDTH, WIDTH).expand(2, -1, -1)
    return convolve(pad(tokens, (0, 0, len(taps) - 1, 0)), taps).sum(0).view_as(x)


def plain_convolve_rows(x, taps):
    rows = x.reshape(x.numel() // WIDTH, WIDTH)
    terms = [pad(rows, (0, 0, lag, 0))[: len(rows)] * tap for lag, tap in enumerate(taps.flip(0))]
    return 2.0 * sum(terms).view_as(x)


def inputs(name, *shape):
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    if name == "relu_squared":
        return relu_squared, plain_relu_squared, [x]
    if name == "unit_vectors":
        return partial(unit_vectors, length=3.0), plain_unit_vectors, [x]
    if name == "convolution":
        taps = torch.randn(4, WIDTH, dtype=torch.float64, requires_grad=True)
        return convolve_rows, plain_convolve_rows, [x, taps]
    weight = torch.randn(WIDTH, dtype=torch.float64, requires_grad=True)

    def own(x, weight):
        return rms_norm(x, weight, EPSILON)

    def plain(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt() * weight

    return own, plain, [x, weight]


@pytest.mark.parametrize("shape", [(3, 5, WIDTH), (WIDTH,), (0, WIDTH)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients(name, shape):
    own, plain, arguments = inputs(name, *shape)
    out, expected = own(*arguments), plain(*arguments)
    assert (
        "Backward" in type(out.grad_fn).__name__ and out.grad_fn.name() != expected.grad_fn.name()
    )
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    gradients = [torch.autograd.grad(y, arguments, upstream) for y in (out, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", NAMES)
def test_second_gradients(name):
    own, plain, arguments = inputs(name, 3, WIDTH)
    second = []
    for function in (own, plain):
        y = function(*arguments)
        first = torch.autograd.grad(y.square().sum(), arguments, create_graph=True)
        second.append(torch.autograd.grad(sum(x.square().sum() for x in first), arguments))
    torch.testing.assert_close(*second)


@pytest.mark.parametrize("name", NAMES)
def test_transforms(name):
    own, plain, (x, *weights) = inputs(name, 3, WIDTH)
    results = [
        torch.func.vmap(torch.func.grad(lambda row, f=function: f(row, *weights).square().sum()))(x)
        for function in (own, plain)
    ]
    torch.testing.assert_close(*results)


def test_autocast_does_not_reach_the_gradient():
    options = {"dtype": torch.float32, "requires_grad": True}
    x, weight = (torch.randn(*shape, **options) for shape in [(3, WIDTH), (WIDTH,)])
    out = rms_norm(x, weight, EPSILON)
    upstream = torch.randn_like(out)
    expected = torch.autograd.grad(out, [x, weight], upstream, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(out, [x, weight], upstream)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_half_precision_is_left_to_torch(monkeypatch):
    monkeypatch.delattr(custom_gradients, "RMSNormFunction")
    x, weight = torch.randn(3, WIDTH).bfloat16(), torch.ones(WIDTH).bfloat16()
    out = rms_norm(x, weight, EPSILON)
    torch.testing.assert_close(out, plain_rms_norm(x, (WIDTH,), weight, EPSILON))
