"""Functions with gradients of their own equal their parts: values, first and second gradients."""

from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.functional import pad
from torch.nn.functional import rms_norm as plain_rms_norm

from attention_zoo import custom_gradients
from attention_zoo.attention.recurrent.convolution import convolve
from attention_zoo.custom_gradients import (
    NO_LENGTH,
    relu_squared,
    rms_norm,
    scale_to_rms,
    unit_vectors,
)

NAMES = ["relu_squared", "rms_norm", "unit_vectors", "convolution"]
WIDTH, EPSILON = 7, 1e-3
SHAPES = [(3, WIDTH), (WIDTH,)]  # of inputs and a weight


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


@pytest.mark.parametrize("name", NAMES)
def test_batches_of_gradients(name):
    own, plain, arguments = inputs(name, 3, WIDTH)
    upstream = torch.randn(4, 3, WIDTH, dtype=torch.float64)
    gradients = [
        torch.autograd.grad(function(*arguments), arguments, upstream, is_grads_batched=True)
        for function in (own, plain)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", NAMES)
def test_forward_derivatives(name):
    own, plain, arguments = inputs(name, 3, WIDTH)
    tangents = [torch.randn_like(x) for x in arguments]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(arguments, tangents, strict=True)]
        found, expected = (forward_ad.unpack_dual(f(*duals)).tangent for f in (own, plain))
    torch.testing.assert_close(found, expected)


def test_inputs_that_depend_on_one_another():
    """The gradient of each is that of its own place, and not of what is computed from it."""
    x = torch.randn(3, WIDTH, dtype=torch.float64, requires_grad=True)
    gradients = []
    for function in (rms_norm, scale_to_rms):
        y = x.square()
        out = function(y, y[0], EPSILON).sin().sum()
        gradients.append(torch.autograd.grad(out, x, create_graph=True)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("width", [8, 128])
def test_a_vector_without_length_has_finite_gradients(width):
    x = torch.zeros(2, width, dtype=torch.float32)
    gradient = torch.func.grad(lambda x: unit_vectors(x, epsilon=NO_LENGTH).sum())(x)
    assert gradient.isfinite().all()
    x.requires_grad_()
    out = unit_vectors(x, epsilon=NO_LENGTH)
    for create_graph in (False, True):
        (gradient,) = torch.autograd.grad(
            out.sum(), x, retain_graph=True, create_graph=create_graph
        )
        assert gradient.isfinite().all()


def test_autocast_does_not_reach_the_gradient():
    options = {"dtype": torch.float32, "requires_grad": True}
    x, weight = (torch.randn(*shape, **options) for shape in SHAPES)
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
