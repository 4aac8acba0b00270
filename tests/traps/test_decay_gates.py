"""States with fixed rates and learned gates: `lightning`, `hgrn2`, `gated_slot`."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import UserError, create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.attention.recurrent.gated_slot import product_decayed_by_value
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.masks import Mask, TokenSpan
from tests.conformance.cases import moved
from tests.conformance.definition import visible
from tests.conformance.numbers import assert_same
from tests.traps.test_decay import DECAYS, assert_exact_in_float32, decays

DIM, HEADS = 16, 4
every_entry = pytest.mark.parametrize("name", ["lightning", "hgrn2", "gated_slot"])


def causal(name: str, **options: object) -> Attention:
    return create_attention(name, dim=DIM, heads=HEADS, role="causal", **options)


def project_steps(attention: Attention, x: Tensor) -> Steps:
    positions = torch.arange(x.shape[1])[None]
    return attention.project_steps(x, positions, ConvolutionRunner(TokenSpan()))


@every_entry
def test_work_grows_with_length(name: str) -> None:
    attention = causal(name)

    def work(length: int) -> int:
        with FlopCounterMode(display=False) as counter:
            attention(torch.randn(1, length, DIM, requires_grad=True)).sum().backward()
        return counter.get_total_flops()

    # The first chunk costs less, as it has no state to read.
    assert work(1536) - work(1024) == work(1024) - work(512)


@every_entry
def test_one_norm_serves_all_heads(name: str) -> None:
    """A head that is larger than the others stays larger: heads are not normalised one by one."""
    attention = causal(name)
    x, attended = torch.randn(2, 5, DIM), torch.rand(2, HEADS, 5, DIM // HEADS) + 1.0
    out = attention.project_output(attended, x)
    larger = torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None] * attended
    assert not torch.allclose(attention.project_output(larger, x), out, rtol=0.05)
    torch.nn.init.zeros_(attention.norm.weight)
    assert (attention.project_output(attended, x) == 0).all()


# Lightning attention


def test_rates_are_slopes_of_alibi() -> None:
    """exp(−1/4), exp(−1/16), …: the first of four heads forgets fastest, and none is without."""
    decay = causal("lightning").log_decay(torch.randn(1, 3, DIM))
    assert_same(decay[0, :, 0, 0], -torch.tensor([1 / 4, 1 / 16, 1 / 64, 1 / 256]))


def test_later_layers_forget_more_slowly() -> None:
    x = torch.randn(1, 1, DIM)
    rates = [
        -causal("lightning", layer=layer, layers=3).log_decay(x)[0, 0, 0, 0] for layer in range(3)
    ]
    assert_same(torch.stack(rates), torch.tensor([1.00001, 0.50001, 0.00001]) / 4)
    only = causal("lightning", layer=0, layers=1).log_decay(x)[0, 0, 0, 0]
    assert_same(-only, torch.tensor(1.00001) / 4)


def test_values_pass_through_the_activation_as_well() -> None:
    steps = project_steps(causal("lightning"), 10.0 * torch.randn(2, 50, DIM))
    for part in (steps.q, steps.k, steps.v):
        assert -0.279 < part.min() < -0.27 and part.max() > 1


def test_a_layer_beyond_the_stack_is_refused() -> None:
    with pytest.raises(UserError, match="layer=3, layers=3"):
        causal("lightning", layer=3, layers=3)


# HGRN2


def test_gates_of_later_layers_have_lower_bounds() -> None:
    """The logits are at their lowest; keys are what the gates leave free."""
    for layer, bound in enumerate([0.0, 1 / 2, 2 / 3]):
        attention = causal("hgrn2", layer=layer)
        attention.key.weight = torch.nn.Parameter(torch.full((DIM, DIM), -1e3))
        steps = project_steps(attention, torch.ones(1, 1, DIM))
        expected = torch.full_like(steps.k, bound)
        assert_same([steps.decay.exp(), 1 - steps.k], [expected, expected])


def test_a_later_layer_is_the_equation() -> None:
    attention = moved(causal("hgrn2", layer=2), scale=1.0)
    x = torch.randn(2, 9, DIM)
    mask = Mask(key_mask=torch.tensor([[True] * 9, [False, True, True] * 3]))
    sees = visible(attention, mask, 2, 9, 9)
    assert_same(attention(x, mask=mask), attention.naive(x, x, sees, torch.arange(9)[None]))


def test_keys_keep_their_digits_where_gates_are_open() -> None:
    """1 − exp(log f) loses the digits of a small key in float32."""
    attention = causal("hgrn2").float()
    attention.key.weight = torch.nn.Parameter(torch.full((DIM, DIM), 20.0 / DIM).float())
    steps = project_steps(attention, torch.ones(1, 1, DIM, dtype=torch.float32))
    torch.testing.assert_close(steps.k, torch.tensor(-20.0).sigmoid().float().expand_as(steps.k))


# Gated slot attention


@pytest.mark.parametrize("kind", list(DECAYS))
def test_slots_of_any_decay_are_exact_in_float32(kind: str) -> None:
    q, k, v = torch.randn(2, 2, 150, 5), torch.randn(2, 2, 150, 5), torch.randn(2, 2, 150, 6)
    single = [part.float().requires_grad_() for part in (q, k, v, decays(kind, 150, 6))]
    double = [part.detach().double().requires_grad_() for part in single]
    ours, _ = product_decayed_by_value(Steps(*single[:3], decay=single[3]), None)
    q, k, v, decay = double
    state, outputs = q.new_zeros(2, 2, 5, 6), []
    for t in range(150):
        state = decay[:, :, t, None].exp() * state + k[:, :, t, :, None] * v[:, :, t, None]
        outputs.append((q[:, :, t, None] @ state)[:, :, 0])
    expected = torch.stack(outputs, dim=2)
    assert_exact_in_float32(ours, expected, single, double)


def test_slots_are_softmax_attention_over_gated_means() -> None:
    """Keys and values decay by the same gates; scores are not scaled by 1/√c."""
    attention = causal("gated_slot", slots=3)
    x = torch.randn(1, 7, DIM)
    steps = project_steps(attention, x)
    gates, keys, values, outputs = steps.decay.exp(), 0.0, 0.0, []
    for t in range(7):
        gate, write = gates[:, :, t, :, None], 1 - gates[:, :, t, :, None]
        keys = gate * keys + write * steps.k[:, :, t, None]
        values = gate * values + write * steps.v[:, :, t, None]
        scores = keys @ steps.q[:, :, t, :, None]
        outputs.append((scores.softmax(dim=-2) * values).sum(dim=-2))
    attended = torch.stack(outputs, dim=2)
    assert_same(attention(x), attention.project_output(attended, x))


def test_a_state_of_slots_does_not_grow() -> None:
    attention = causal("gated_slot", slots=3)
    assert attention.decode_state(1) == attention.decode_state(1000) == 2 * HEADS * 3 * 4


@pytest.mark.parametrize("options", [{"slots": 0}, {"temperature": 0.0}], ids=str)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    ((option, value),) = options.items()
    with pytest.raises(UserError, match=f"{option}.*{value}"):
        causal("gated_slot", **options)
