"""Networks that are trained while they read: `ttt_linear`, `ttt_mlp`, `titans`."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from attention_zoo import Unsupported, create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.attention.recurrent import mini_batches
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.attention.recurrent.inner_loop import gelu_derivative
from attention_zoo.masks import Mask, TokenSpan
from tests.conformance.cases import moved
from tests.conformance.numbers import assert_same

DIM, HEADS, SIZE = 16, 2, 4
TTT = ["ttt_linear", "ttt_mlp"]
every_entry = pytest.mark.parametrize("name", [*TTT, "titans"])


def causal(name: str, **options: Any) -> Attention:
    options = {"heads": HEADS, "mini_batch_size": SIZE} | options
    if name == "titans":
        # A convolution would let tokens of different mini-batches meet.
        options = {"kernel_size": 1} | options
    return moved(create_attention(name, dim=DIM, role="causal", **options))


def states_after(attention: Attention, x: Tensor, mask: Mask = Mask()) -> tuple[Tensor, ...]:
    cache = attention.new_cache()
    attention(x, mask=mask, cache=cache)
    return cache.state


def written(attention: Attention, x: Tensor) -> Tensor:
    """Return the gradients of the losses by the outputs of the network, [b h t c]."""
    steps = attention.project_steps(
        x, torch.arange(x.shape[1])[None], ConvolutionRunner(TokenSpan())
    )
    trace, batches, _ = attention.run(steps, TokenSpan())
    return batches.join(trace.gradients)


@every_entry
def test_gradients_of_a_mini_batch_are_those_at_the_weights_before_it(name: str) -> None:
    """A token changes the gradients of later mini-batches, and of no other token in its own."""
    attention = causal(name)
    x = torch.randn(1, 3 * SIZE, DIM)
    changed = x.clone()
    changed[:, SIZE] += 1.0
    differs = (written(attention, x) != written(attention, changed)).any(dim=-1)
    expected = [False] * SIZE + [True] + [False] * (SIZE - 1) + [True] * SIZE
    assert differs.tolist() == [[expected] * HEADS]


@every_entry
def test_an_open_mini_batch_does_not_end_with_the_call(name: str) -> None:
    """The weights at which gradients are taken change with the last token of a mini-batch only."""
    attention = causal(name)
    x, cache, before = torch.randn(1, 2 * SIZE, DIM), attention.new_cache(), []
    for token in x.split(1, dim=1):
        attention(token, cache=cache)
        before.append(cache.state[0])
    changes = [not torch.equal(a, b) for a, b in zip(before[1:], before[:-1], strict=True)]
    assert changes == [i % SIZE == SIZE - 2 for i in range(2 * SIZE - 1)]


@every_entry
def test_padding_takes_no_place_in_a_mini_batch(name: str) -> None:
    attention = causal(name)
    x = torch.randn(1, 12, DIM)
    real = torch.tensor([[False, True, True, False, True, True, True, False, True] + [False] * 3])
    assert_same(
        states_after(attention, x, Mask(key_mask=real)), states_after(attention, x[:, real[0]])
    )


@every_entry
@pytest.mark.parametrize("split", [3, 5, 6, 8])
def test_a_segment_starts_from_the_learned_weights(name: str, split: int) -> None:
    """Wherever a cache goes on: the start of the segment may be padding of an earlier call."""
    attention = causal(name)
    x, ids = torch.randn(1, 12, DIM), torch.tensor([[0] * 5 + [1] * 7])
    real = torch.tensor([[True] * 5 + [False, False] + [True] * 5])
    cache = attention.new_cache()
    for stop in (split, 12):
        mask = Mask(segment_ids=ids[:, :stop], key_mask=real[:, :stop])
        attention(x[:, cache.length : stop], mask=mask, cache=cache)
    assert_same(cache.state, states_after(attention, x[:, 7:]))


@every_entry
def test_segments_are_kept_apart_where_values_cannot_be_read(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while it is compiled: then the number of mini-batches is not known."""
    attention = causal(name)
    x, ids = torch.randn(2, 11, DIM), torch.tensor([[0] * 6 + [1] + [2] * 4, [0] * 9 + [1] * 2])
    mask = Mask(segment_ids=ids)
    expected = attention(x, mask=mask)
    monkeypatch.setattr(mini_batches, "is_readable", lambda _: False)
    assert_same(attention(x, mask=mask), expected)


@every_entry
@pytest.mark.slow
def test_packed_rows_compile(name: str) -> None:
    torch.compiler.reset()
    attention = causal(name)
    x, mask = torch.randn(2, 9, DIM), Mask(segment_ids=torch.tensor([[0] * 6 + [1] * 3]))
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    assert_same(compiled(x, mask=mask), attention(x, mask=mask))


@pytest.mark.parametrize("name", TTT)
def test_the_query_is_added_to_what_the_network_returns(name: str) -> None:
    """Not the output of its last layer, as in flash-linear-attention."""
    attention = causal(name)
    nn.init.zeros_(attention.gain)
    nn.init.zeros_(attention.shift)
    x = torch.randn(2, 9, DIM)
    steps = attention.project_steps(x, torch.arange(9)[None], ConvolutionRunner(TokenSpan()))
    assert_same(attention(x), attention.project_output(steps.q, x))


@every_entry
def test_a_rate_of_zero_learns_nothing(name: str) -> None:
    attention = causal(name)
    nn.init.zeros_(attention.rate.weight)
    nn.init.constant_(attention.rate.bias, -1000.0)
    assert (attention.attention_map(torch.randn(2, 9, DIM)) == 0).all()


@pytest.mark.parametrize("name", TTT)
def test_the_rate_is_that_of_the_gradient_and_the_place_that_of_the_query(name: str) -> None:
    """A weight is p_i η_j times the product of features, with p of the query and η of the key."""
    attention = causal(name)
    with torch.no_grad():
        attention.place_rate[2] = -10.0
        # No learned rate, but that of one token.
        attention.rate.weight.zero_()
        attention.rate.weight[:, 0] = 1.0
        attention.rate.bias.fill_(-1000.0)
    x = torch.zeros(1, 2 * SIZE, DIM)
    x[..., 1:] = torch.randn(1, 2 * SIZE, DIM - 1)
    x[:, 1, 0] = 2000.0
    weights = attention.attention_map(x)[0, 0]
    learns = weights != 0
    # The third place reads the weights before the mini-batch, in its own mini-batch only.
    assert learns[:, 1].tolist() == [False, True, False, True, True, True, True, True]
    assert not learns[:, [0, *range(2, 2 * SIZE)]].any()


def test_titans_forgets_all_where_alpha_is_one() -> None:
    """What is left of the memory is the last change, which is not decayed."""
    attention = causal("titans")
    nn.init.zeros_(attention.decay.weight)
    nn.init.constant_(attention.decay.bias, -1000.0)
    _, memory, momentum, *_ = states_after(attention, torch.randn(2, 7, DIM))
    assert_same(memory, momentum)


def test_titans_without_momentum_and_forgetting_sums_its_steps() -> None:
    attention = causal("titans")
    for layer, bias in ((attention.decay, 1000.0), (attention.momentum, -1000.0)):
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, bias)
    x = torch.randn(1, 3, DIM)
    cache, changes = attention.new_cache(), []
    for token in x.split(1, dim=1):
        attention(token, cache=cache)
        changes.append(cache.state[2])
    start = torch.cat([layer().flatten(1) for layer in attention.layers], dim=-1)
    assert_same(cache.state[1], start + sum(changes))


def test_the_momentum_of_titans_goes_on_in_the_next_mini_batch() -> None:
    """A token that adds nothing still moves the memory, by what is left of the last change."""
    attention = causal("titans")
    cache = attention.new_cache()
    attention(torch.randn(1, SIZE, DIM), cache=cache)
    _, memory, momentum, *_ = cache.state
    nn.init.zeros_(attention.rate.weight)
    nn.init.constant_(attention.rate.bias, -1000.0)
    x = torch.randn(1, 1, DIM)
    attention(x, cache=cache)
    kept, carried = attention.decay(x).sigmoid().mT, attention.momentum(x).sigmoid().mT
    assert_same(cache.state[1:3], (kept * memory + carried * momentum, carried * momentum))


def test_a_memory_of_titans_may_be_an_mlp() -> None:
    for layers in (2, 3):
        attention = causal("titans", memory_layers=layers)
        x = torch.randn(2, 7, DIM)
        visible = torch.ones(7, 7, dtype=torch.bool).tril().expand(2, -1, -1)
        assert_same(attention(x), attention.naive(x, x, visible, torch.arange(7)[None]))
        assert len(attention.layers) == layers


def test_the_derivative_of_gelu_is_that_of_its_approximation() -> None:
    """At large numbers too, whose cubes overflow."""
    x = torch.tensor([0.0, -0.3, 0.3, 1.7, -5.0, 9.9, -10.1, 50.0]).requires_grad_()
    (expected,) = torch.autograd.grad(gelu(x, approximate="tanh").sum(), x)
    assert_same(gelu_derivative(x), expected)
    large = torch.tensor([-1e30, 1e30], dtype=torch.float32, requires_grad=True)
    (gradient,) = torch.autograd.grad(gelu_derivative(large).sum(), large)
    assert gelu_derivative(large).tolist() == [0.0, 1.0] and gradient.tolist() == [0.0, 0.0]


@every_entry
def test_no_encoding_acts_on_queries_and_keys(name: str) -> None:
    """The network is not linear in them: distances alone would not remain."""
    with pytest.raises(Unsupported, match="rotary"):
        create_attention(name, dim=DIM, heads=HEADS, role="causal", position="rotary")
