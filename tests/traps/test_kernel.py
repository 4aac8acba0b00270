"""Linear attention and its feature maps."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import UserError, create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.attention.kernel.linear import FEATURE_MAPS
from attention_zoo.attention.kernel.performer import PerformerFeatures
from attention_zoo.masks import Mask
from attention_zoo.zoo import Role
from tests.conformance.cases import mark_exhaustive
from tests.conformance.definition import packed
from tests.conformance.numbers import assert_same

DIM, HEADS = 16, 2
MAPS = pytest.mark.parametrize("name", list(FEATURE_MAPS))


def linear(name: str, role: Role = "causal", **options: object) -> Attention:
    return create_attention("linear", dim=DIM, heads=HEADS, role=role, feature_map=name, **options)


def random_features(**options: object) -> PerformerFeatures:
    return PerformerFeatures(**{"heads": 1, "head_dim": 8, "role": "causal"} | options)


@MAPS
def test_a_feature_map_is_a_choice_of_linear_and_has_a_preset(name: str) -> None:
    chosen = linear(name)
    preset = create_attention(
        "linear" if name == "elu" else name, dim=DIM, heads=HEADS, role="causal"
    )
    preset.load_state_dict(chosen.state_dict())
    x = torch.randn(2, 9, DIM)
    assert_same(preset(x), chosen(x))


def test_an_unknown_feature_map_is_refused() -> None:
    with pytest.raises(UserError, match=r"no feature_map 'performr'. Did you mean performer"):
        linear("performr")


@pytest.mark.parametrize("role", mark_exhaustive((x, "self") for x in ("causal", "global")))
@MAPS
def test_packed_sequences_cost_work_linear_in_length(name: str, role: Role) -> None:
    attention = linear(name, role)

    def work(length: int) -> int:
        segment_ids = packed([length // 2, length // 2 - 64, 64], 1)
        with FlopCounterMode(display=False) as counter:
            attention(torch.randn(1, length, DIM), mask=Mask(segment_ids=segment_ids))
        return counter.get_total_flops()

    # The first chunk costs less, as it has no state to read.
    assert work(512) - work(384) == work(384) - work(256)


@MAPS
def test_a_packed_context_is_read_once(name: str) -> None:
    attention = linear(name, "cross")
    x, context = torch.randn(2, 4, DIM), torch.randn(2, 9, DIM)
    # Not numbered from zero, and some sequences of the context are nobody's.
    segment_ids = 7 * packed([3, 1, 5], 2) + 3
    query_segment_ids = torch.tensor([[3, 3, 10, 3], [17, 17, 3, 3]])
    mask = Mask(segment_ids=segment_ids, query_segment_ids=query_segment_ids)
    expected = attention(x, context, mask=mask)
    cache = attention.new_cache()
    later = torch.full_like(context, math.nan)
    outputs = [
        attention(
            x[:, i : i + 1],
            context if i == 0 else later,
            mask=replace(mask, query_segment_ids=query_segment_ids[:, i : i + 1]),
            cache=cache,
        )
        for i in range(4)
    ]
    assert_same(torch.cat(outputs, dim=1), expected)


# Performer.


def test_random_features_estimate_the_exponential() -> None:
    """q and k are scaled by c^(−1/4) each: otherwise the mean would be exp(q·k)."""
    q, k = 0.7 * torch.randn(1, 1, 5, 8), 0.7 * torch.randn(1, 1, 6, 8)
    features = random_features(features=50_000)
    expected = (q @ k.transpose(-2, -1) / math.sqrt(8)).exp()
    largest = features.exponents(q).amax(dim=-1, keepdim=True)
    queries = features.map_queries(q, None) * largest.exp()
    estimate = queries @ features.map_keys(k, None).transpose(-2, -1)
    torch.testing.assert_close(estimate, expected, rtol=0.1, atol=0.0)


def test_random_features_are_positive() -> None:
    assert (random_features().map_keys(torch.randn(1, 1, 50, 8), None) > 0).all()


def test_random_directions_are_orthogonal_and_as_long_as_gaussian_ones() -> None:
    blocks = random_features(features=8 * 500 + 3).directions[:-3].view(500, 8, 8)
    products = blocks @ blocks.transpose(-2, -1)
    lengths = products.diagonal(dim1=-2, dim2=-1)
    assert_same(products, lengths.diag_embed())
    # χ² of 8 degrees of freedom: mean 8, variance 16.
    assert lengths.mean().item() == pytest.approx(8.0, rel=0.05)
    assert lengths.var().item() == pytest.approx(16.0, rel=0.2)
    # No direction is preferred.
    assert blocks.flatten(0, 1).mean(dim=0).abs().max() < 0.1


def test_random_features_are_drawn_by_the_seed_and_saved() -> None:
    x = torch.randn(2, 9, DIM)
    ours, same, other = (
        create_attention("performer", dim=DIM, heads=HEADS, role="causal", seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(ours.feature_map.directions, same.feature_map.directions)
    assert not torch.equal(ours.feature_map.directions, other.feature_map.directions)
    other.load_state_dict(ours.state_dict())
    assert_same(other(x), ours(x))
    state = torch.random.get_rng_state()
    random_features()
    assert torch.equal(torch.random.get_rng_state(), state), "the model's own draws are moved"


@pytest.mark.parametrize("role", ["causal", "global"])
def test_the_stabiliser_sees_neither_the_future_nor_other_rows(role: Role) -> None:
    """Outputs are equal bit by bit in float32, where a scaled feature may already have vanished."""
    attention = create_attention("performer", dim=DIM, heads=HEADS, role=role).float()
    with torch.no_grad():
        attention.key.weight.copy_(torch.eye(DIM))
    directions = attention.feature_map.directions
    longest = directions[directions.norm(dim=-1).argmax()] * directions.shape[1] ** 0.25
    x = torch.randn(2, 70, DIM, dtype=torch.float32)
    other = x.clone()
    # No key has a larger feature.
    other[1, -1] = longest.repeat(HEADS)
    assert torch.equal(attention(other)[0], attention(x)[0])
    if role == "causal":
        assert torch.equal(attention(other)[1, :-1], attention(x)[1, :-1])


@pytest.mark.parametrize("head_dim", [8, 64, 256])
def test_no_key_overflows_and_none_vanishes(head_dim: int) -> None:
    """The worst key lies along a direction; an ordinary one keeps its weight in float32."""
    features = random_features(head_dim=head_dim).float()
    worst = features.directions[None, None] * head_dim**0.25
    usual = torch.randn(1, 1, 100, head_dim, dtype=torch.float32)
    assert features.map_keys(worst, None).sum().isfinite()
    assert (features.map_keys(usual, None).amax(dim=-1) > 1e-37).all()


# cosFormer.


def test_cosformer_weighs_by_the_distance_of_positions() -> None:
    attention = create_attention("cosformer", dim=DIM, heads=1, role="global", max_length=10)
    x = torch.randn(1, 4, DIM)
    positions = [0, 2, 3, 9]
    q, (k, _) = attention.project_query(x), attention.project_key_value(x)
    expected = torch.zeros(4, 4)
    for i, a in enumerate(positions):
        for j, b in enumerate(positions):
            product = (q[0, 0, i].relu() * k[0, 0, j].relu()).sum()
            expected[i, j] = product * math.cos(math.pi / 2 * (a - b) / 10)
    expected = expected / expected.sum(dim=-1, keepdim=True)
    actual = attention.attention_map(x, positions=torch.tensor([positions]))
    torch.testing.assert_close(actual[0, 0], expected, rtol=1e-4, atol=1e-4)


def test_cosformer_horizon_is_fixed() -> None:
    """M is not the length: later tokens do not change the weights of earlier ones."""
    attention = create_attention("cosformer", dim=DIM, heads=HEADS, role="causal")
    x = torch.randn(1, 12, DIM)
    assert_same(attention(x)[:, :5], attention(x[:, :5]))


def test_cosformer_refuses_longer_input() -> None:
    options = {"dim": DIM, "heads": HEADS, "max_length": 6}
    attention = create_attention("cosformer", role="causal", **options)
    cache = attention.new_cache()
    attention(torch.randn(1, 6, DIM), cache=cache)
    with pytest.raises(UserError, match="max_length=6, got 7 tokens"):
        attention(torch.randn(1, 1, DIM), cache=cache)
    with pytest.raises(UserError, match="max_length=6, got 7 tokens"):
        attention(torch.randn(1, 7, DIM))
    # Without positions there is no horizon.
    cross = create_attention("cosformer", role="cross", **options)
    cross(torch.randn(1, 7, DIM), torch.randn(1, 7, DIM))


def test_cosformer_of_cross_attention_knows_no_positions() -> None:
    attention = create_attention("cosformer", dim=DIM, heads=HEADS, role="cross")
    x, context = torch.randn(1, 3, DIM), torch.randn(1, 7, DIM)
    assert_same(attention(x, context.flip(1)), attention(x, context))


def test_cosformer_without_positive_channels_is_still_a_mean() -> None:
    """relu makes such a query zero, and its weights would be 0/0."""
    attention = create_attention("cosformer", dim=DIM, heads=1, role="global")
    with torch.no_grad():
        attention.query.weight.copy_(-torch.eye(DIM))
        attention.key.weight.copy_(-torch.eye(DIM))
    weights = attention.attention_map(torch.rand(1, 5, DIM))
    torch.testing.assert_close(weights, torch.full_like(weights, 0.2), rtol=1e-3, atol=0.0)


# Taylor, ReBased, Hedgehog.


def test_taylor_is_near_softmax_where_scores_are_small() -> None:
    """They agree to second order, with the scale of the narrow queries, 1/√4, not of the values."""
    attention = create_attention("taylor", dim=DIM, heads=1, role="global", feature_dim=4)
    x = 0.3 * torch.randn(1, 6, DIM)
    q, (k, v) = attention.project_query(x), attention.project_key_value(x)
    assert q.shape[-1] == k.shape[-1] == 4 and v.shape[-1] == DIM
    scores = q @ k.transpose(-2, -1) / 2.0
    softmax, actual = scores.softmax(dim=-1), attention.attention_map(x)
    linear = (1 + scores) / (1 + scores).sum(dim=-1, keepdim=True)
    assert (actual - softmax).abs().max() < 0.1 * (linear - softmax).abs().max()


def test_taylor_is_positive_where_the_line_is_not() -> None:
    features = FEATURE_MAPS["taylor"](heads=1, head_dim=8, role="causal")
    q = torch.full((1, 1, 1, 16), 0.5)
    kernel = features.map_queries(q, None) @ features.map_keys(-q, None).transpose(-2, -1)
    # s = −16 · ¼ / 4 = −1, where 1 + s + s²/2 is least.
    assert kernel.item() == pytest.approx(0.5)


def test_rebased_norms_queries_and_keys_apart() -> None:
    features = FEATURE_MAPS["rebased"](heads=1, head_dim=8, role="causal", feature_dim=4)
    with torch.no_grad():
        for parameter in features.parameters():
            parameter.normal_()
    q, k = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 5, 4)
    actual = features.map_queries(features.prepare_query(q), None) @ features.map_keys(
        features.prepare_key(k), None
    ).transpose(-2, -1)

    def affine(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
        x = x - x.mean(dim=-1, keepdim=True)
        return x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias

    a, b = affine(q, features.query_norm), affine(k, features.key_norm)
    assert_same(actual, (a @ b.transpose(-2, -1)).square() / 4 + features.floor)


def test_hedgehog_learns_each_head_and_queries_apart_from_keys() -> None:
    attention = create_attention("hedgehog", dim=DIM, heads=HEADS, role="global")
    features = attention.feature_map
    assert features.query_weight.shape == features.key_weight.shape == (HEADS, 8, 8)
    with torch.no_grad():
        features.query_weight.normal_()
    x = torch.randn(1, 1, HEADS, 3, 8)[0]
    products = [x[0, h] @ features.query_weight[h].T for h in range(HEADS)]
    expected = torch.stack([torch.cat([(2 * y).exp(), (-2 * y).exp()], dim=-1) for y in products])
    assert_same(features.map_queries(x, None)[0], expected / expected.sum(dim=-1, keepdim=True))
    assert_same(features.map_keys(x, None), torch.cat([2 * x, -2 * x], dim=-1).softmax(dim=-1))


@pytest.mark.parametrize("name", ["taylor", "rebased"])
def test_rotary_positions_keep_functions_of_products_a_mean(name: str) -> None:
    """Queries and keys are rotated before the square: the weights stay positive, and sum to 1."""
    attention = create_attention(name, dim=DIM, heads=HEADS, role="causal", position="rotary")
    weights = attention.attention_map(torch.randn(2, 9, DIM))
    assert (weights >= 0).all()
    assert_same(weights.sum(dim=-1), torch.ones(2, HEADS, 9))
