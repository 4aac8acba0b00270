"""The product with gradients of its own equals its formula: values, first and second gradients."""

import pytest
import torch

from attention_zoo.attention.recurrent import decayed_product as module
from attention_zoo.attention.recurrent.decayed_product import decayed_product
from attention_zoo.attention.recurrent.steps import Steps

BATCH, HEADS, CHANNELS, VALUES = 2, 3, 4, 5
DECAYS = {"none": None, "by head": (BATCH, HEADS), "of all rows": (1, HEADS), "of all": (1, 1)}


def draw(length, decay, has_state):
    """Return q, k, v, log a and the state, in float64; some decays forget everything."""
    options = {"dtype": torch.float64, "requires_grad": True}
    q, k = (torch.randn(BATCH, HEADS, length, CHANNELS, **options) for _ in range(2))
    v = torch.randn(BATCH, HEADS, length, VALUES, **options)
    log_decay = state = None
    if DECAYS[decay] is not None:
        log_decay = 2.0 * torch.rand(*DECAYS[decay], length, 1, dtype=torch.float64).log()
        log_decay[:, :, length // 3 :: 29] = float("-inf")
        log_decay.requires_grad_()
    if has_state:
        state = torch.randn(BATCH, HEADS, CHANNELS, VALUES, **options)
    return q, k, v, log_decay, state


def own_and_plain(monkeypatch, inputs):
    """Return the results with gradients of their own, and those of the formula."""
    q, k, v, decay, state = inputs
    steps = Steps(q, k, v, decay=decay)
    own = decayed_product(steps, state)
    assert any("DecayedProduct" in name for name in names_of_graph(own[1]))
    with monkeypatch.context() as patch:
        patch.setattr(module, "is_eager_cpu", lambda x: False)
        plain = decayed_product(steps, state)
    assert not any("DecayedProduct" in name for name in names_of_graph(plain[1]))
    return own, plain


def names_of_graph(x):
    found, nodes = set(), [x.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in found:
            found.add(node)
            nodes += [following for following, _ in node.next_functions]
    return {node.name() for node in found}


@pytest.mark.parametrize("has_state", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("length", [1, 40, 64, 65, 130])
def test_values_and_gradients(monkeypatch, length, decay, has_state):
    inputs = draw(length, decay, has_state)
    given = [x for x in inputs if x is not None]
    own, plain = own_and_plain(monkeypatch, inputs)
    torch.testing.assert_close(own, plain)
    upstream = [torch.randn_like(x) for x in own]
    for outputs in (slice(0, 1), slice(1, 2), slice(0, 2)):
        gradients = [
            torch.autograd.grad(
                x[outputs], given, upstream[outputs], retain_graph=True, materialize_grads=True
            )
            for x in (own, plain)
        ]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("has_state", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("length", [5, 70])
def test_second_gradients(monkeypatch, length, decay, has_state):
    inputs = draw(length, decay, has_state)
    given = [x for x in inputs if x is not None]
    second = []
    for out, state in own_and_plain(monkeypatch, inputs):
        first = torch.autograd.grad(
            out.square().sum() + state.pow(3).sum(), given, create_graph=True
        )
        second.append(torch.autograd.grad(sum(x.square().sum() for x in first), given))
    torch.testing.assert_close(*second)


@pytest.mark.parametrize("frozen", range(5))
def test_inputs_without_a_gradient(monkeypatch, frozen):
    inputs = draw(70, "by head", has_state=True)
    inputs[frozen].requires_grad_(False)
    given = [x for x in inputs if x.requires_grad]
    own, plain = own_and_plain(monkeypatch, inputs)
    gradients = [torch.autograd.grad(sum(x.sum() for x in y), given) for y in (own, plain)]
    torch.testing.assert_close(*gradients)


def test_autocast_does_not_reach_the_gradients():
    inputs = [x.detach().float().requires_grad_() for x in draw(70, "by head", has_state=True)]
    q, k, v, decay, state = inputs
    out, _ = decayed_product(Steps(q, k, v, decay=decay), state)
    expected = torch.autograd.grad(out.sum(), inputs, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(out.sum(), inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_transforms():
    inputs = [x.detach() for x in draw(40, "by head", has_state=True)]

    def loss(q, k, v, decay, state):
        return decayed_product(Steps(q, k, v, decay=decay), state)[0].square().sum()

    found = torch.func.grad(loss, argnums=(0, 1, 2, 3, 4))(*inputs)
    leaves = [x.requires_grad_() for x in inputs]
    torch.testing.assert_close(found, torch.autograd.grad(loss(*leaves), leaves))
