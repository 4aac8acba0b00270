"""Products with gradients of their own equal their formulas: values, first and second gradients."""

import pytest
import torch

from attention_zoo.attention.recurrent import channel_scan, decayed_product
from attention_zoo.attention.recurrent.steps import Steps

BATCH, HEADS, CHANNELS, VALUES = 2, 3, 4, 5
# By what a state decays: the shape of a token's decay, if it has one.
DECAYS = {
    "nothing": None,
    "a number of the head": (BATCH, HEADS, 1),
    "a number of all rows": (1, HEADS, 1),
    "a number of all": (1, 1, 1),
    "a number of the channel": (BATCH, HEADS, CHANNELS),
}
ONE_VALUE = "a number of the channel"  # whose values are single numbers


def product(decay):
    """Return the module and the function that multiply by a state."""
    module = channel_scan if decay == ONE_VALUE else decayed_product
    return module, vars(module)[module.__name__.rpartition(".")[2]]


def draw(length, decay, has_state):
    """Return q, k, v, log a and the state, in float64; some decays forget everything."""
    options = {"dtype": torch.float64, "requires_grad": True}
    values = 1 if decay == ONE_VALUE else VALUES
    q, k = (torch.randn(BATCH, HEADS, length, CHANNELS, **options) for _ in range(2))
    v = torch.randn(BATCH, HEADS, length, values, **options)
    log_decay = state = None
    if DECAYS[decay] is not None:
        *rows, channels = DECAYS[decay]
        log_decay = 2.0 * torch.rand(*rows, length, channels, dtype=torch.float64).log()
        log_decay[:, :, length // 3 :: 29] = float("-inf")
        log_decay.requires_grad_()
    if has_state:
        state = torch.randn(BATCH, HEADS, CHANNELS, values, **options)
    return q, k, v, log_decay, state


def own_and_plain(monkeypatch, decay, inputs):
    """Return the results with gradients of their own, and those of the formula."""
    q, k, v, log_decay, state = inputs
    steps = Steps(q, k, v, decay=log_decay)
    module, function = product(decay)
    own = function(steps, state)
    assert names_of_graph(own[1]) & {"DecayedProductBackward", "ChannelScanBackward"}
    with monkeypatch.context() as patch:
        patch.setattr(module, "allows_custom_gradients", lambda *inputs: False)
        plain = function(steps, state)
    assert not names_of_graph(plain[1]) & {"DecayedProductBackward", "ChannelScanBackward"}
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
    own, plain = own_and_plain(monkeypatch, decay, inputs)
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
    for out, state in own_and_plain(monkeypatch, decay, inputs):
        first = torch.autograd.grad(
            out.square().sum() + state.pow(3).sum(), given, create_graph=True
        )
        second.append(torch.autograd.grad(sum(x.square().sum() for x in first), given))
    torch.testing.assert_close(*second)


BOTH = pytest.mark.parametrize("decay", ["a number of the head", ONE_VALUE])


@BOTH
@pytest.mark.parametrize("frozen", range(5))
def test_inputs_without_a_gradient(monkeypatch, decay, frozen):
    inputs = draw(70, decay, has_state=True)
    inputs[frozen].requires_grad_(False)
    given = [x for x in inputs if x.requires_grad]
    own, plain = own_and_plain(monkeypatch, decay, inputs)
    gradients = [torch.autograd.grad(sum(x.sum() for x in y), given) for y in (own, plain)]
    torch.testing.assert_close(*gradients)


@BOTH
def test_queries_that_heads_share(monkeypatch, decay):
    inputs = draw(70, decay, has_state=False)
    shared = torch.randn(BATCH, 1, 70, CHANNELS, dtype=torch.float64, requires_grad=True)
    inputs = (shared.expand_as(inputs[0]), *inputs[1:])
    gradients = [
        torch.autograd.grad(out.square().sum(), shared)
        for out, _ in own_and_plain(monkeypatch, decay, inputs)
    ]
    torch.testing.assert_close(*gradients)


@BOTH
def test_autocast_does_not_reach_the_gradients(decay):
    inputs = [x.detach().float().requires_grad_() for x in draw(70, decay, has_state=True)]
    q, k, v, log_decay, state = inputs
    out, _ = product(decay)[1](Steps(q, k, v, decay=log_decay), state)
    expected = torch.autograd.grad(out.sum(), inputs, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(out.sum(), inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@BOTH
def test_checkpointing(decay):
    """Saved tensors are there for one reading where they are computed again."""
    inputs = draw(70, decay, has_state=True)

    def loss(*inputs):
        out, state = product(decay)[1](Steps(*inputs[:3], decay=inputs[3]), inputs[4])
        return out.square().sum() + state.sum()

    again = torch.utils.checkpoint.checkpoint(loss, *inputs, use_reentrant=False)
    found = torch.autograd.grad(again, inputs)
    torch.testing.assert_close(found, torch.autograd.grad(loss(*inputs), inputs))


@BOTH
def test_transforms(decay):
    inputs = [x.detach() for x in draw(40, decay, has_state=True)]

    def loss(q, k, v, log_decay, state):
        return product(decay)[1](Steps(q, k, v, decay=log_decay), state)[0].square().sum()

    found = torch.func.grad(loss, argnums=(0, 1, 2, 3, 4))(*inputs)
    leaves = [x.requires_grad_() for x in inputs]
    torch.testing.assert_close(found, torch.autograd.grad(loss(*leaves), leaves))
