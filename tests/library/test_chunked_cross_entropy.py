"""The loss that takes logits in chunks of tokens equals plain cross entropy, gradients too."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from attention_zoo.models import chunked_cross_entropy as module
from attention_zoo.models.blocks import BlockOptions
from attention_zoo.models.chunked_cross_entropy import chunk_tokens, chunked_cross_entropy
from attention_zoo.models.embedding import OutputHead, TokenEmbedding

TOKENS, DIM, VOCABULARY = 23, 6, 11
OPTIONS = {
    "plain": {},
    "scaled": {"logit_scale": 0.5},
    "capped": {"logit_cap": 2.0},
    "biased": {"logit_bias": True},
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Take five tokens at a time, and three in the last chunk."""
    monkeypatch.setattr(module, "CPU_CHUNK_LOGITS", 5 * VOCABULARY + 1)


def make_inputs(dtype=torch.float64, *, tied=False, **options):
    options = BlockOptions(dim=DIM, ffn_dim=None, **options)
    head = OutputHead(TokenEmbedding(VOCABULARY, options), options, tied=tied).to(dtype)
    hidden = torch.randn(TOKENS, DIM, dtype=dtype, requires_grad=True)
    targets = torch.randint(VOCABULARY, (TOKENS,))
    targets[[0, 7, 8, 22]] = -100
    return head, hidden, targets


def plain_loss(head, hidden, targets, **options):
    return cross_entropy(head(hidden), targets, reduction="sum", **options)


def differentiate(loss, head, hidden):
    return torch.autograd.grad(loss, [hidden, *head.parameters()])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_loss_and_gradients_are_those_of_all_logits_at_once(options, label_smoothing):
    inputs = make_inputs(**options)
    losses = [
        loss(*inputs, ignore_index=-100, label_smoothing=label_smoothing)
        for loss in (chunked_cross_entropy, plain_loss)
    ]
    torch.testing.assert_close(*losses)
    # As micro-batches do, with a factor.
    gradients = [differentiate(-3.0 * loss, *inputs[:2]) for loss in losses]
    torch.testing.assert_close(*gradients)


def test_ignored_tokens_have_no_gradient():
    head, hidden, targets = make_inputs()
    gradient, *_ = differentiate(chunked_cross_entropy(head, hidden, targets), head, hidden)
    assert torch.equal(gradient.any(-1), targets != -100)


def test_a_frozen_head_lets_gradients_through():
    head, hidden, targets = make_inputs()
    head.requires_grad_(False)
    (expected,) = torch.autograd.grad(plain_loss(head, hidden, targets), [hidden])
    chunked_cross_entropy(head, hidden, targets).backward()
    torch.testing.assert_close(hidden.grad, expected)
    assert head.weight.grad is None


def test_under_autocast_it_is_as_exact():
    head, hidden, targets = make_inputs(torch.float32)
    exact = differentiate(plain_loss(head, hidden, targets), head, hidden)
    with torch.autocast("cpu", torch.bfloat16):
        losses = [loss(head, hidden, targets) for loss in (chunked_cross_entropy, plain_loss)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        gradients = differentiate(loss, head, hidden)
        assert [x.dtype for x in gradients] == [torch.float32, torch.float32]
        torch.testing.assert_close(gradients, exact, rtol=0.05, atol=0.05)


def test_a_chunk_has_no_more_logits_than_allowed():
    sizes = []
    head, hidden, targets = make_inputs()
    head.register_forward_hook(lambda head, inputs, logits: sizes.append(len(logits)))
    chunked_cross_entropy(head, hidden, targets)
    assert sizes == [5, 5, 5, 5, 3]
    assert [len(x) for x, _ in chunk_tokens(hidden, targets, 10**6)] == [1] * TOKENS
