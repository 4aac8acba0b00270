"""Recurrent networks that run token by token: `gru`, `lstm`, `slstm`."""

import pytest
import torch
from torch import Tensor, nn

from attention_zoo import UserError, create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.masks import Mask, TokenSpan
from tests.conformance.numbers import assert_same, default_dtype

DIM = 16
every_entry = pytest.mark.parametrize("name", ["gru", "lstm", "slstm"])


def causal(name: str) -> Attention:
    return create_attention(name, dim=DIM, role="causal")


def states_after(attention: Attention, x: Tensor, mask: Mask = Mask()) -> tuple[Tensor, ...]:
    cache = attention.new_cache()
    attention(x, mask=mask, cache=cache)
    return cache.state


@every_entry
def test_padding_touches_no_state(name: str) -> None:
    """The last state is that of the last real token, not of the last column."""
    attention = causal(name)
    x = torch.randn(1, 12, DIM)
    real = torch.tensor([[False, True, True, False, True, True, True] + [False] * 5])
    assert_same(
        states_after(attention, x, Mask(key_mask=real)), states_after(attention, x[:, real[0]])
    )


@every_entry
def test_a_segment_starts_from_zeros(name: str) -> None:
    """Also the memory cell does, and where a cache goes on into another segment."""
    attention = causal(name)
    x, ids = torch.randn(1, 9, DIM), torch.tensor([[0] * 4 + [1] * 5])
    cache = attention.new_cache()
    attention(x[:, :4], mask=Mask(segment_ids=ids[:, :4]), cache=cache)
    attention(x[:, 4:], mask=Mask(segment_ids=ids), cache=cache)
    assert_same(cache.state, states_after(attention, x[:, 4:]))


@every_entry
def test_a_cache_does_not_hold_the_states_of_a_prompt(name: str) -> None:
    for state in states_after(causal(name), torch.randn(2, 50, DIM)):
        assert state.untyped_storage().nbytes() == state.nbytes


@every_entry
def test_states_are_exact_under_autocast(name: str) -> None:
    """A state in half precision would stop to change where its gates are nearly closed."""
    with default_dtype("float32"):
        attention = causal(name)
        inputs = torch.randn(2, 30, attention.cell.gates * DIM)
        attention.cell.input = nn.Identity()
        exact = attention.cell(inputs, TokenSpan())
        with torch.autocast("cpu", torch.bfloat16):
            under_autocast = attention.cell(inputs, TokenSpan())
    for ours, theirs in zip(under_autocast, exact, strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, theirs)


def test_the_update_gate_keeps_the_state() -> None:
    """z is the share of the old state, as in PyTorch; some papers call that 1 − z."""
    attention = causal("gru")
    bias = torch.zeros(3, DIM)
    bias[1] = 50.0
    attention.cell.input.bias = nn.Parameter(bias.flatten())
    assert attention(torch.randn(1, 9, DIM)).abs().max() < 1e-12
    bias[1] = -50.0
    attention.cell.input.bias = nn.Parameter(bias.flatten())
    (weights,) = attention.attention_map(torch.randn(1, 9, DIM))
    assert_same(weights, torch.eye(9).expand_as(weights))


def test_the_reset_gate_hides_the_state_from_the_candidate() -> None:
    """Its bias inside is hidden as well: r ⊙ (U h + b)."""
    attention = causal("gru")
    bias = torch.zeros(3, DIM)
    bias[0] = -50.0
    attention.cell.input.bias = nn.Parameter(bias.flatten())
    x = torch.randn(1, 9, DIM)
    candidate = attention.cell.input(x)[..., 2 * DIM :].tanh()
    assert_same(attention.values(x)[..., 0].transpose(1, 2), candidate)


def test_a_forget_gate_that_is_open_counts() -> None:
    """The cell grows without bound, and the output does not."""
    attention = causal("lstm")
    for layer in (attention.cell.input, attention.cell.hidden):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    attention.cell.input.bias = nn.Parameter(torch.full((4, DIM), 50.0).flatten())
    hidden, cell = states_after(attention, torch.randn(1, 9, DIM))
    assert_same([cell, hidden], [torch.full((1, DIM), 9.0), torch.full((1, DIM), 9.0).tanh()])


@every_entry
def test_each_channel_has_weights_of_its_own(name: str) -> None:
    weights = causal(name).attention_map(torch.randn(1, 5, DIM))
    assert weights.shape == (1, DIM, 5, 5)
    assert not torch.allclose(weights[:, 0], weights[:, 1])
    assert (weights.sum(dim=-1) < 1 if name == "gru" else weights >= 0).all()


@pytest.mark.parametrize("size", [-300.0, 300.0])
def test_exponential_gates_of_slstm_do_not_overflow(size: float) -> None:
    """A gate of e^300 is beyond float32; equal gates give the mean, whatever their size."""
    with default_dtype("float32"):
        attention = causal("slstm")
        gates = torch.zeros(4, DIM)
        gates[0], gates[1] = size, 50.0  # Nothing is forgotten.
        nn.init.zeros_(attention.cell.mixing)
        attention.cell.input.bias = nn.Parameter(gates.flatten())
        with torch.no_grad():
            attention.cell.input.weight[:DIM] = 0.0
        x = torch.randn(1, 9, DIM)
        out = attention(x)
        out.sum().backward()
    candidates = attention.values(x)[..., 0].transpose(1, 2)
    counts = torch.arange(1, 10)[:, None]
    gate = attention.cell.input(x).chunk(4, dim=-1)[3].sigmoid()
    torch.testing.assert_close(out, gate * candidates.cumsum(dim=1) / counts)
    assert all(part.grad.isfinite().all() for part in attention.parameters())


def test_blocks_of_slstm_do_not_mix() -> None:
    """A channel reads the hidden states of its own block only, by way of R."""
    attention = create_attention("slstm", dim=DIM, role="causal", blocks=2)
    hidden = torch.randn(DIM, requires_grad=True)
    projected = attention.cell.project_hidden(hidden).view(4, 2, DIM // 2)
    for block in range(2):
        (gradient,) = torch.autograd.grad(projected[:, block].sum(), hidden, retain_graph=True)
        assert (gradient.view(2, -1) != 0).all(dim=1).tolist() == [block == 0, block == 1]
    with pytest.raises(UserError, match="multiple of blocks, got dim=16, blocks=3"):
        create_attention("slstm", dim=DIM, role="causal", blocks=3)
