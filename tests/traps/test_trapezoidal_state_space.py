"""The trapezoidal state space of Mamba-3: `trapezoidal_state_space`."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from attention_zoo import UserError, create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.attention.recurrent.trapezoidal_state_space import AngleSum, rotate_pairs
from attention_zoo.masks import Mask, TokenSpan
from tests.conformance.definition import key_mask, packed, visible
from tests.conformance.numbers import assert_same, values_and_gradients

DIM, HEADS = 16, 4
NAME = "trapezoidal_state_space"


def causal(**options: object) -> Attention:
    return create_attention(NAME, dim=DIM, heads=HEADS, role="causal", state_dim=8, **options)


every_rank = pytest.mark.parametrize("rank", [1, 2, 3])


def moved(attention: Attention) -> Attention:
    """Move what starts alike, or near zero, so that an exchange would show."""
    for name in ("step_bias", "skip", "query_bias", "key_bias"):
        nn.init.normal_(attention.get_parameter(name))
    for name in ("query_norm.weight", "key_norm.weight", "angle.weight"):
        nn.init.normal_(attention.get_parameter(name))
    if attention.rank > 1:
        for name in ("input_scale", "gate_scale", "output_scale"):
            nn.init.normal_(attention.get_parameter(name))
    return attention


def run_complex(attention: Attention, x: Tensor) -> Tensor:
    """Compute the block with a state of complex numbers, one token of one row at a time."""
    width, pairs, ranks = attention.value_dim, attention.num_pairs, attention.rank
    outputs = torch.zeros(len(x), x.shape[1], HEADS * width)
    for row in range(len(x)):
        for h in range(HEADS):
            group = h * attention.groups // HEADS
            state = torch.zeros(8 - pairs, width, dtype=torch.complex128)
            before: Tensor = torch.zeros_like(state)
            scales = torch.ones(3, ranks, width)
            if ranks > 1:
                names = ("input_scale", "gate_scale", "output_scale")
                scales = torch.stack([attention.get_parameter(name)[h, :, 0] for name in names])
            for t, token in enumerate(x[row]):
                vectors: dict[str, list[Tensor]] = {"key": [], "query": []}
                for part, r in product(vectors, range(ranks)):
                    vector = (getattr(attention, part).weight @ token).view(ranks, -1, 8)[r, group]
                    vector = vector / (vector.square().mean() + 1e-5).sqrt()
                    vector = vector * getattr(attention, f"{part}_norm").weight
                    vector = vector + getattr(attention, f"{part}_bias")[ranks * h + r, 0]
                    # Two channels are a complex number, and those that do not turn are real.
                    turned = torch.complex(vector[0 : 2 * pairs : 2], vector[1 : 2 * pairs : 2])
                    vectors[part].append(torch.cat([turned, vector[2 * pairs :].to(turned.dtype)]))
                size = softplus(attention.step.weight[h] @ token + attention.step_bias[h])
                rate = -softplus(attention.decay.weight[h] @ token).clamp(min=1e-4)
                share = torch.sigmoid(attention.share.weight[h] @ token)
                angle = math.pi * torch.tanh(attention.angle.weight @ token)
                angle = torch.cat([angle, torch.zeros(8 - 2 * pairs)])
                alpha = torch.exp(size * torch.complex(rate.expand(len(angle)), -angle))[:, None]
                v, z = (
                    layer.weight.view(HEADS, width, DIM)[h] @ token
                    for layer in (attention.value, attention.gate)
                )
                inputs, gates = v * scales[0], z * scales[1]
                addition = torch.stack(vectors["key"], dim=1) @ inputs.to(state.dtype)
                state = alpha * (state + (1 - share) * size * before) + share * size * addition
                before = addition
                y = (torch.stack(vectors["query"]).conj() @ state).real
                y = (y + attention.skip[h] * inputs) * silu(gates) * scales[2]
                outputs[row, t, h * width : (h + 1) * width] = y.sum(dim=0)
    return attention.output(outputs)


@every_rank
@pytest.mark.parametrize("fraction", [0.5, 1.0, 0.3])
def test_the_state_is_complex(fraction: float, rank: int) -> None:
    """Turning B and C instead is the same, in values and in gradients."""
    attention = moved(causal(groups=2, rotary_fraction=fraction, rank=rank))
    results = []
    for compute in (attention, lambda x: run_complex(attention, x)):
        x = torch.linspace(-1.0, 2.0, 2 * 7 * DIM).sin().view(2, 7, DIM).requires_grad_()
        out = compute(x)
        leaves = [x, *attention.parameters()]
        weights = torch.arange(1.0, out.numel() + 1).sin().view_as(out)
        results.append([out, *torch.autograd.grad((out * weights).sum(), leaves)])
    assert_same(*results)


def test_each_token_is_mixed_with_the_one_before() -> None:
    """With λ = 1 the rule is Euler's: a token that does not decay what was before adds ΔB x."""
    attention = causal()
    nn.init.zeros_(attention.share.weight)
    attention.share.bias = nn.Parameter(torch.full((HEADS,), 50.0))
    nn.init.zeros_(attention.angle.weight)
    nn.init.zeros_(attention.skip)
    x = torch.randn(1, 9, DIM)
    steps = attention.project_steps(x, torch.arange(9)[None], lambda layer, y: torch.zeros_like(y))
    weights = attention.attention_map(x)
    sizes = steps.rate.sum(dim=-1)
    decays = (steps.decay[..., 0].cumsum(dim=-1)[..., None] - steps.decay.cumsum(2).mT).exp()
    assert_same(weights, (steps.q @ steps.k.mT * sizes[:, :, None] * decays).tril())
    # With λ = ½ the last token has half of it, and the first of all has no token before.
    attention.share.bias = nn.Parameter(torch.zeros(HEADS))
    halved = attention.attention_map(x)
    assert_same(halved.diagonal(dim1=2, dim2=3), weights.diagonal(dim1=2, dim2=3) / 2)
    mean = (sizes[..., :-1] + sizes[..., 1:]) / 2 / sizes[..., :-1]
    expected = weights.tril(-1)[..., :-1] * mean[:, :, None]
    assert_same(halved.tril(-1)[..., :-1], expected)


@every_rank
def test_a_token_adds_only_what_is_known_by_then(rank: int) -> None:
    """What it adds later depends on the next token, to the last digit of earlier outputs."""
    attention = moved(causal(rank=rank))
    x = torch.randn(1, 150, DIM)
    changed = x.clone()
    changed[:, 101:] = 1e6
    assert torch.equal(attention(x)[:, :101], attention(changed)[:, :101])


@every_rank
@pytest.mark.parametrize("padding", [[0, 1], [5], [3, 4, 9]], ids=str)
def test_the_token_before_is_a_real_one(padding: list[int], rank: int) -> None:
    attention = moved(causal(rank=rank))
    x = torch.randn(1, 12, DIM)
    real = torch.ones(1, 12, dtype=torch.bool)
    real[:, padding] = False
    cache, alone = attention.new_cache(), attention.new_cache()
    out = attention(x, mask=Mask(key_mask=real), cache=cache)
    assert_same(out[real], attention(x[real][None], cache=alone)[0])
    assert_same(list(cache.state), list(alone.state))


@every_rank
def test_the_first_token_of_a_segment_has_none_before(rank: int) -> None:
    attention = moved(causal(rank=rank))
    x = torch.randn(1, 80, DIM)
    mask = Mask(segment_ids=(torch.arange(80) >= 71).long()[None])
    assert_same(attention(x, mask=mask)[:, 71:], attention(x[:, 71:]))


def test_turns_in_a_long_sequence_keep_their_digits_in_float32() -> None:
    """A plain sum of 100,000 angles is a multiple of 0.0078."""
    angles = torch.full((1, 100_000, 1), 0.7123, dtype=torch.float32)
    sums, last = AngleSum(1)(angles, TokenSpan())

    def turns(sums: Tensor) -> Tensor:
        return sums.diff(dim=1).remainder(2 * math.pi)

    assert (turns(angles.cumsum(dim=1)) - 0.7123).abs().max() > 1e-3
    assert (turns(sums) - 0.7123).abs().max() < 1e-5
    assert 0 <= last < 2 * math.pi


def test_angles_go_on_where_the_cache_ends() -> None:
    layer, angles = AngleSum(3), 5.0 * torch.randn(2, 150, 3)
    sums, last = layer(angles, TokenSpan())
    first, state = layer(angles[:, :70], TokenSpan())
    second, end = layer(angles[:, 70:], TokenSpan(start=70), state)
    pairs = (torch.cat([first, second], dim=1), sums), (end, last)
    for ours, theirs in pairs:
        assert_same([ours.cos(), ours.sin()], [theirs.cos(), theirs.sin()])


def test_neighbouring_channels_are_a_pair_and_the_last_ones_do_not_turn() -> None:
    x = torch.tensor([1.0, 0.0, 0.0, 2.0, 5.0, 7.0])[None, None, None]
    angles = torch.tensor([math.pi / 2, math.pi])[None, None, None]
    expected = torch.tensor([0.0, 1.0, 0.0, -2.0, 5.0, 7.0])[None, None, None]
    assert_same(rotate_pairs(x, angles), expected)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, 0.2])
def test_fractions_that_leave_no_pair_are_refused(fraction: float) -> None:
    with pytest.raises(UserError, match="rotary_fraction must be above 0 and at most 1"):
        causal(rotary_fraction=fraction)


def test_the_state_turns_a_value_round() -> None:
    """Parity needs a state whose sign a token can change; no real decay above 0 does that."""
    attention = causal()
    with torch.no_grad():
        attention.angle.weight.zero_()
        attention.angle.weight[:, 0] = 50.0  # θ = π where the first channel is 1, else 0
        attention.step.weight.zero_()
        attention.step_bias.fill_(math.log(math.e - 1))  # Δ = 1
        attention.decay.weight.zero_()
        attention.decay.weight[:, 1] = -50.0  # hardly any decay
        for part in ("query", "key"):
            getattr(attention, f"{part}_norm").weight.zero_()
            getattr(attention, f"{part}_bias").zero_()[..., :2] = 1.0
    x = torch.zeros(1, 6, DIM)
    x[..., 1] = 1.0
    x[0, [2, 3, 5], 0] = 1.0
    weights = attention.attention_map(x)[0, 0]
    assert weights[:, 0].sign().tolist() == [1, 1, -1, 1, 1, -1]


# Several inputs and outputs


@pytest.mark.parametrize(
    "mask",
    [
        Mask(),
        Mask(key_mask=key_mask("left", 2, 40)),
        Mask(key_mask=key_mask("interior", 2, 40)),
        Mask(segment_ids=packed([1, 36, 3], 2)),
    ],
    ids=["open", "left", "interior", "packed"],
)
def test_ranks_are_the_equation(mask: Mask) -> None:
    """40 tokens of rank 3 are more than a chunk."""
    attention = moved(causal(rank=3, groups=2, bias=True))
    x = torch.randn(2, 40, DIM)
    sees = visible(attention, mask, 2, 40, 40)
    # What a query at padding reads inside a row has no meaning.
    real = 1.0 if mask.key_mask is None else mask.key_mask[..., None]
    assert_same(
        values_and_gradients(lambda x: real * attention(x, mask=mask), attention, x),
        values_and_gradients(
            lambda x: real * attention.naive(x, x, sees, torch.arange(40)[None]), attention, x
        ),
    )
    weights = attention.attention_map(x, mask=mask)
    assert weights.shape == (2, HEADS * 9, 40, 40) and attention.num_maps == HEADS * 9
    sums = weights @ attention.values(x, mask=mask)
    assert_same(attention.project_output(sums, x), attention(x, mask=mask))


@pytest.mark.parametrize("chunks", [[1] * 9 + [31], [23, 1, 16]], ids=str)
def test_ranks_go_on_from_a_state(chunks: list[int]) -> None:
    attention = moved(causal(rank=3))
    x, cache = torch.randn(2, 40, DIM), attention.new_cache()
    parts = [attention(part, cache=cache) for part in x.split(chunks, dim=1)]
    assert_same(torch.cat(parts, dim=1), attention(x))
    assert attention.decode_state(40) == sum(part[0].numel() for part in cache.state)


def test_a_state_has_one_size_for_all_ranks() -> None:
    """The token before has a key for each rank beside it, and its value once."""
    one, four = (causal(rank=rank).decode_state(40) for rank in (1, 4))
    assert four - one == HEADS * 3 * 8


def test_ranks_start_as_their_mean() -> None:
    """Equal keys and queries for all ranks give what rank 1 gives, as scales start at 1/R and 1."""
    one, four = causal(rank=1), causal(rank=4)
    weights = {
        name: weight.repeat(4, 1) if name in ("query.weight", "key.weight") else weight
        for name, weight in one.state_dict().items()
    }
    for name in ("query_bias", "key_bias"):
        weights[name] = weights[name].repeat_interleave(4, dim=0)
    weights["skip"] = 4.0 * weights["skip"]  # It is of inputs, which are a quarter of it.
    missing, unexpected = four.load_state_dict(weights, strict=False)
    assert set(missing) == {"input_scale", "gate_scale", "output_scale"} and not unexpected
    x = torch.randn(2, 20, DIM)
    assert_same(four(x), one(x))


@pytest.mark.parametrize("rank", [0, -1])
def test_ranks_below_one_are_refused(rank: int) -> None:
    with pytest.raises(UserError, match=f"rank.*{rank}"):
        causal(rank=rank)
