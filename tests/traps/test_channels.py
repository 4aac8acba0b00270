"""Recurrences of single channels: `rg_lru`, `selective_scan`."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, silu, softplus

from attention_zoo import UserError, create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.attention.recurrent import selective_scan
from attention_zoo.attention.recurrent.channel_scan import channel_scan
from attention_zoo.attention.recurrent.decayed_product import decayed_product
from attention_zoo.attention.recurrent.rg_lru import BlockDiagonalLinear
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.masks import Mask, TokenSpan
from tests.conformance.numbers import assert_same, default_dtype, values_and_gradients
from tests.traps.memory import Memory, measure_memory
from tests.traps.test_decay import DECAYS, assert_exact_in_float32, decays

DIM = 16
every_entry = pytest.mark.parametrize("name", ["rg_lru", "selective_scan"])


def causal(name: str, **options: object) -> Attention:
    return create_attention(name, dim=DIM, role="causal", **options)


@every_entry
def test_work_grows_with_length(name: str) -> None:
    """In numbers that are made, as the scan has no products of matrices."""
    attention = causal(name)

    def peak(length: int) -> int:
        return measure_memory(lambda: attention(torch.randn(1, length, DIM))).peak

    assert peak(1024) / peak(512) < 2.001


@every_entry
def test_chunks_go_on_from_a_state(name: str) -> None:
    attention = causal(name)
    x, cache = torch.randn(1, 150, DIM), attention.new_cache()
    parts = [attention(part, cache=cache) for part in x.split([70, 1, 79], dim=1)]
    assert_same(torch.cat(parts, dim=1), attention(x))


@every_entry
def test_padding_touches_no_state(name: str) -> None:
    attention = causal(name)
    x, real = torch.randn(1, 9, DIM), torch.tensor([[True] * 4 + [False] * 2 + [True] * 3])
    padded, alone = attention.new_cache(), attention.new_cache()
    attention(x, mask=Mask(key_mask=real), cache=padded)
    attention(x[:, real[0]], cache=alone)
    assert_same(padded.state, alone.state)


# RG-LRU


def test_the_unit_is_that_of_the_paper() -> None:
    """The gates see the convolved token, and the gate of the output the token itself."""
    attention = causal("rg_lru", blocks=1)
    x = torch.randn(2, 12, DIM)
    u, _ = attention.convolution(attention.value(x), TokenSpan())

    def gate(layer: BlockDiagonalLinear) -> Tensor:
        return (u @ layer.weight[0] + layer.bias).sigmoid()

    a = attention.decay.sigmoid() ** (8 * gate(attention.recurrence_gate))
    h, states = torch.zeros(2, DIM), []
    for t in range(12):
        h = a[:, t] * h + (1 - a[:, t] ** 2).sqrt() * (gate(attention.input_gate) * u)[:, t]
        states.append(h)
    y = torch.stack(states, dim=1) * gelu(attention.gate(x), approximate="tanh")
    assert_same(attention(x), attention.output(y))


def test_channels_start_by_forgetting_slowly() -> None:
    powers = causal("rg_lru", width=400).decay.sigmoid() ** 8
    assert 0.9 <= powers.min() < 0.91 and 0.989 < powers.max() <= 0.999


def test_closed_gates_have_finite_gradients() -> None:
    """The derivative of the root is infinite where a is 1."""
    with default_dtype("float32"):
        attention = causal("rg_lru")
        torch.nn.init.constant_(attention.recurrence_gate.bias, -200.0)
        found = values_and_gradients(attention, attention, torch.randn(2, 9, DIM))
    assert all(part.isfinite().all() for part in found)


def test_blocks_of_gates_are_apart() -> None:
    layer = BlockDiagonalLinear(8, 2)
    x = torch.randn(1, 3, 8)
    other = x.clone()
    other[..., 4:] += 1.0
    changed = (layer(other) != layer(x)).any(dim=(0, 1))
    assert changed.tolist() == [False] * 4 + [True] * 4


# Selective scan


def test_steps_are_those_of_the_paper() -> None:
    """B, C and Δ are projections of the convolved token; Δ is one for all of a channel's state."""
    attention = causal("selective_scan", state_dim=3, expand=1)
    x = torch.randn(2, 12, DIM)
    mixed = silu(attention.convolution(attention.value(x), TokenSpan())[0])
    step = softplus(attention.step(mixed))[..., None]
    b, c = (layer(mixed)[:, :, None] for layer in (attention.key, attention.query))
    state, outputs = torch.zeros(2, DIM, 3), []
    for t in range(12):
        decay = (-attention.rate.exp() * step[:, t]).exp()
        state = decay * state + step[:, t] * b[:, t] * mixed[:, t, :, None]
        outputs.append((state * c[:, t]).sum(dim=-1) + attention.skip * mixed[:, t])
    y = torch.stack(outputs, dim=1) * silu(attention.gate(x))
    assert_same(attention(x), attention.output(y))


def test_rates_start_as_whole_numbers() -> None:
    rate = causal("selective_scan", state_dim=5).rate.exp()
    assert_same(rate, torch.arange(1.0, 6.0).expand(2 * DIM, -1))


def test_the_skip_gives_nothing_to_a_query_that_sees_nothing() -> None:
    real = torch.tensor([[False, False, True, True]])
    out = causal("selective_scan")(torch.randn(1, 4, DIM), mask=Mask(key_mask=real))
    assert (out[0, :2] == 0).all() and (out[0, 2:] != 0).any(dim=-1).all()


def test_states_are_computed_again_and_not_kept() -> None:
    """Between the passes there are decays and keys alone: a number for each channel and state."""
    attention, x = causal("selective_scan"), torch.randn(1, 256, DIM)
    with Memory() as memory, torch.enable_grad():
        out = attention(x)
        memory.alive = {ref: size for ref, size in memory.alive.items() if not ref.expired()}
        kept = sum(memory.alive.values())
    assert out.requires_grad
    assert kept < 3.5 * 256 * 2 * DIM * 16 * 8


def test_spans_of_tokens_give_what_one_span_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = causal("selective_scan")
    x = torch.randn(2, 150, DIM)
    at_once = values_and_gradients(attention, attention, x)
    monkeypatch.setattr(selective_scan, "SPAN", 70)
    for a, b in zip(values_and_gradients(attention, attention, x), at_once, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("kind", list(DECAYS))
def test_decays_of_any_strength_are_exact_in_float32(kind: str) -> None:
    q, k, v = torch.randn(2, 2, 150, 6), torch.randn(2, 2, 150, 6), torch.randn(2, 2, 150, 1)
    single = [part.float().requires_grad_() for part in (q, k, v, decays(kind, 150, 6))]
    double = [part.detach().double().requires_grad_() for part in single]
    ours, last = channel_scan(Steps(*single[:3], decay=single[3]))
    expected, state = decayed_product(Steps(*double[:3], decay=double[3]))
    torch.testing.assert_close(last.double(), state, rtol=1e-5, atol=1e-5)
    assert_exact_in_float32(ours, expected, single, double)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rg_lru", {"blocks": 3}),
        ("rg_lru", {"width": 0}),
        ("rg_lru", {"kernel_size": 0}),
        ("selective_scan", {"state_dim": 0}),
        ("selective_scan", {"expand": 0}),
        ("selective_scan", {"rank": 0}),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, int]) -> None:
    ((option, value),) = options.items()
    with pytest.raises(UserError, match=f"{option}.*{value}"):
        causal(name, **options)
