"""Comba: `comba`."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from attention_zoo import create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.attention.recurrent.delta_rule import delta_rule
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.masks import Mask, TokenSpan
from tests.conformance.numbers import assert_same

DIM, HEADS = 16, 4
forms = pytest.mark.parametrize("paper_feedback", [False, True], ids=["code", "paper"])


def causal(name: str = "comba", **options: object) -> Attention:
    return create_attention(name, dim=DIM, heads=HEADS, role="causal", **options)


def project_steps(attention: Attention, x: Tensor) -> Steps:
    positions = torch.arange(x.shape[1])[None]
    return attention.project_steps(x, positions, ConvolutionRunner(TokenSpan()))


def run_tokens(steps: Steps) -> Tensor:
    """Compute S_t = exp(g_t) S_{t−1} + k_t (v_t − S_{t−1}ᵀ p_t)ᵀ and S_tᵀ q_t, token by token."""
    q, k, v, p, _, g, *_ = steps
    state, outputs = torch.zeros(*k.shape[:2], k.shape[3], v.shape[3]), []
    for t in range(k.shape[2]):
        read = (p[:, :, t, :, None] * state).sum(dim=2)
        added = k[:, :, t, :, None] * (v[:, :, t] - read)[:, :, None]
        state = g[:, :, t, :, None].exp() * state + added
        outputs.append((q[:, :, t, :, None] * state).sum(dim=2))
    return torch.stack(outputs, dim=2)


@forms
def test_what_is_erased_was_in_the_state_before_the_decay(paper_feedback: bool) -> None:
    """`gated_delta` reads the state after its decay, which gives other outputs."""
    attention = causal(paper_feedback=paper_feedback)
    nn.init.normal_(attention.step_bias)
    x = torch.randn(2, 150, DIM)
    steps = project_steps(attention, x)
    expected = attention.project_output(run_tokens(steps), x)
    assert_same(attention(x), expected)
    late, _ = delta_rule(steps, None)
    assert not torch.allclose(attention.project_output(late, x), expected, rtol=1e-2)


@pytest.mark.parametrize("decay", [0.0, -0.1, -30.0, -900.0])
def test_decays_of_any_strength_are_exact_in_float32(decay: float) -> None:
    """What undoes a decay, exp(−g), would overflow."""
    q, k, v, p = (torch.randn(1, 2, 150, 6) for _ in range(4))
    k, p = 0.3 * k / k.norm(dim=-1, keepdim=True), p / p.norm(dim=-1, keepdim=True)
    g = torch.full((1, 2, 150, 1), decay)
    g[:, :, ::7] = -0.01
    single = [part.float().requires_grad_() for part in (q, k, v, p, g)]
    double = [part.detach().double().requires_grad_() for part in single]
    ours, _ = delta_rule(
        Steps(*single[:3], erase=single[3], decay=single[4]), None, erase_first=True
    )
    theirs = run_tokens(Steps(*double[:3], erase=double[3], decay=double[4]))
    actual = [ours, *torch.autograd.grad(ours.sin().sum(), single)]
    expected = [theirs, *torch.autograd.grad(theirs.sin().sum(), double)]
    for a, b in zip(actual, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max() + 1e-30


def test_a_segment_erases_nothing_of_the_one_before() -> None:
    """The state is read before it is forgotten."""
    attention = causal()
    x = torch.randn(1, 80, DIM)
    mask = Mask(segment_ids=(torch.arange(80) >= 71).long()[None])
    assert_same(attention(x, mask=mask)[:, 71:], attention(x[:, 71:]))


def test_the_feedback_cancels_where_the_erasing_key_is_a_unit_vector() -> None:
    """In the authors' code b does nothing but to scale the correction: d σ(b) is one number."""
    ours, other = causal(), causal()
    other.load_state_dict(ours.state_dict())
    nn.init.normal_(other.feedback)
    with torch.no_grad():
        other.correction.copy_(ours.correction * ours.feedback.sigmoid() / other.feedback.sigmoid())
    x = torch.randn(2, 9, DIM)
    torch.testing.assert_close(ours(x), other(x), rtol=1e-3, atol=1e-3)
    scales = project_steps(ours, x).erase.norm(dim=-1)
    torch.testing.assert_close(scales, torch.ones_like(scales), rtol=1e-2, atol=0.0)


def test_the_feedback_of_the_paper_decides_how_much_is_erased() -> None:
    attention = causal(paper_feedback=True)
    nn.init.normal_(attention.feedback)
    steps = project_steps(attention, torch.randn(2, 9, DIM))
    assert_same(steps.erase * steps.rate, attention.feedback.sigmoid()[:, None, None] * steps.k)


@forms
def test_the_correction_comes_before_the_norm_of_queries(paper_feedback: bool) -> None:
    """q is a unit vector after d k is subtracted, and a large d turns it against the key."""
    attention = causal(paper_feedback=paper_feedback, correction=1e6)
    x = torch.randn(2, 9, DIM)
    steps = project_steps(attention, x)
    lengths = steps.q.norm(dim=-1) * attention.head_dim**0.5
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    against = cosine_similarity(steps.q, steps.k, dim=-1)
    torch.testing.assert_close(against, -torch.ones_like(against), rtol=1e-3, atol=0.0)


def test_without_decay_and_correction_it_is_the_delta_rule() -> None:
    """Where nothing decays, before and after are the same; the gate is σ, not SiLU."""
    ours, plain = causal(correction=0.0, paper_feedback=True), causal("gated_delta")
    plain.load_state_dict(ours.state_dict(), strict=False)
    nn.init.constant_(ours.feedback, 1e9)
    for attention in (ours, plain):
        nn.init.constant_(attention.step_bias, -1e9)
    x = torch.randn(2, 9, DIM)
    steps, other = project_steps(ours, x), project_steps(plain, x)
    assert_same(ours.recurrence(steps, None)[0], plain.recurrence(other, None)[0])
    assert_same(plain.output_gate(x), ours.split_heads(ours.gate(x)) * ours.output_gate(x))
