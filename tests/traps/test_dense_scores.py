"""Traps of dense mechanisms with scores of their own."""

import math

import pytest
import torch
from torch import Tensor

from attention_zoo import UserError, create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.caches import TokenCache
from tests.conformance.numbers import assert_same, values_and_gradients
from tests.traps.dense import (
    DIM,
    HEADS,
    LENGTH,
    ROLES,
    WIDTH,
    assert_whole,
    built,
    repeated,
    rms,
    split,
    tokens,
)

# qk_norm


@pytest.mark.parametrize("norm", ["l2", "rms_per_head", "rms_shared", "rms_full"])
def test_each_of_the_norms_of_that_name(norm: str) -> None:
    attention = built("qk_norm", norm=norm, kv_heads=2)
    x = tokens()
    sides, scale = [], WIDTH**-0.5
    for projection, own in (
        (attention.query, attention.query_norm),
        (attention.key, attention.key_norm),
    ):
        wide = projection(x)
        if norm == "l2":
            heads = split(wide) / split(wide).norm(dim=-1, keepdim=True)
            scale = attention.query_norm.scale
        elif norm == "rms_full":
            heads = split(rms(wide) * own.weight.flatten())
        else:
            heads = rms(split(wide)) * own.weight
            assert own.weight.numel() == WIDTH * (1 if norm == "rms_shared" else heads.shape[1])
        sides.append(repeated(heads))
    expected = (sides[0] @ sides[1].transpose(-2, -1) * scale).softmax(dim=-1)
    assert_same(attention.attention_map(x), expected)


@pytest.mark.parametrize("role", ["causal", "global"])
@pytest.mark.parametrize("norm", ["l2", "rms_per_head", "rms_shared", "rms_full"])
def test_every_norm_keeps_the_contract(norm: str, role: str) -> None:
    assert_whole(built("qk_norm", role, norm=norm, kv_heads=2, position="rotary"))


def test_the_norm_comes_before_the_rotation() -> None:
    """A weight that differs from channel to channel does not commute with it."""
    attention = built("qk_norm", position="rotary")
    x, positions = tokens(), torch.arange(LENGTH)[None]
    q = rms(split(attention.query(x))) * attention.query_norm.weight
    k = rms(split(attention.key(x))) * attention.key_norm.weight
    q, k = attention.position.rotate(q, k, positions)
    expected = (q @ k.transpose(-2, -1) / math.sqrt(WIDTH)).softmax(dim=-1)
    assert_same(attention.attention_map(x), expected)


def test_the_learned_scale_takes_the_place_of_the_root() -> None:
    """It starts at log2(L² − L), the number of pairs of a sequence."""
    attention = create_attention("qk_norm", dim=DIM, heads=HEADS, role="global", norm="l2")
    assert_same(attention.query_norm.scale.detach(), torch.tensor(math.log2(1024 * 1023)))
    assert attention.scale == 1.0


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(UserError, match="rms_full, got 'layer'"):
        create_attention("qk_norm", dim=DIM, heads=HEADS, role="causal", norm="layer")


# soft_capped


def test_scores_are_scaled_before_the_cap() -> None:
    attention = built("soft_capped", cap=1.5)
    x = tokens()
    scores = split(attention.query(x)) @ split(attention.key(x)).transpose(-2, -1)
    expected = (1.5 * torch.tanh(scores / math.sqrt(WIDTH) / 1.5)).softmax(dim=-1)
    assert_same(attention.attention_map(x), expected)


def test_the_mask_comes_after_the_cap() -> None:
    """A capped −∞ would be −cap: a weight like any other."""
    attention = built("soft_capped", "causal", cap=0.1)
    weights = attention.attention_map(tokens())
    assert (weights.triu(1) == 0).all()
    assert_same(weights.sum(dim=-1), torch.ones(2, HEADS, LENGTH))


def test_a_cap_bounds_how_sharp_attention_gets() -> None:
    """By e^(2·cap) between any two weights."""
    attention = built("soft_capped", cap=1.0)
    weights = attention.attention_map(100.0 * tokens())
    ratios = weights.amax(dim=-1) / weights.amin(dim=-1)
    assert ratios.max() <= math.exp(2.0) + 1e-9


@pytest.mark.parametrize("cap", [0.0, -1.0])
def test_a_cap_that_is_none_is_refused(cap: float) -> None:
    with pytest.raises(UserError, match="cap must be above 0"):
        built("soft_capped", cap=cap)


# cosine


def cosines(attention: Attention, x: Tensor) -> Tensor:
    q, k = split(attention.query(x)), split(attention.key(x))
    return torch.cosine_similarity(q[:, :, :, None], k[:, :, None], dim=-1)


def test_each_head_has_a_temperature() -> None:
    attention = built("cosine")
    x = tokens()
    sharpness = attention.log_sharpness.exp()
    assert sharpness.unique().numel() == HEADS
    expected = (cosines(attention, x) * sharpness[:, None, None]).softmax(dim=-1)
    assert_same(attention.attention_map(x), expected)


def test_the_temperature_starts_at_a_tenth_and_has_a_floor() -> None:
    """At 0.01: the floor is of τ, which is a ceiling of what the cosines are multiplied by."""
    attention = create_attention("cosine", dim=DIM, heads=HEADS, role="global")
    x = tokens()
    assert_same(attention.attention_map(x), (cosines(attention, x) / 0.1).softmax(dim=-1))
    for learned, counted in ((9.0, 0.01), (-9.0, math.exp(9.0))):
        with torch.no_grad():
            attention.log_sharpness.fill_(learned)
        expected = (cosines(attention, x) / counted).softmax(dim=-1)
        assert_same(attention.attention_map(x), expected)


def test_lengths_of_queries_and_keys_do_not_matter() -> None:
    attention = built("cosine")
    x = tokens()
    before = attention.attention_map(x)
    with torch.no_grad():
        attention.query.weight.mul_(1e3)
        attention.key.weight.mul_(1e-3)
    assert_same(attention.attention_map(x), before)


# general


def test_the_form_is_not_scaled() -> None:
    attention = built("general")
    x = tokens()
    forms = attention.query.weight.unflatten(0, (HEADS, DIM))
    scores = torch.einsum("b q e, h f e, b k f -> b h q k", x, forms, x)
    assert_same(attention.attention_map(x), scores.softmax(dim=-1))


def test_the_form_has_full_rank() -> None:
    """A product of two projections has the rank of a head's width at most."""
    x = torch.randn(1, 2 * DIM, DIM)
    for name, rank in (("general", DIM), ("multi_head", WIDTH)):
        attention = built(name)
        heads = attention.project_qkv(x, None, torch.arange(x.shape[1])[None], None)
        scores = heads.q @ heads.k.transpose(-2, -1)
        assert (torch.linalg.matrix_rank(scores) == rank).all()


def test_the_tokens_are_kept_once_for_all_heads() -> None:
    attention = built("general", "causal", position="rotary")
    assert attention.position.head_dim == DIM
    cache = attention.new_cache()
    assert isinstance(cache, TokenCache)
    attention(tokens(), cache=cache)
    assert cache.tokens["keys"].shape == (2, 1, LENGTH, DIM)


# talking_heads


@pytest.mark.parametrize("role", ROLES)
def test_heads_that_have_not_talked_are_multi_head(role: str) -> None:
    """Mixes start as the identity; a residual beside them would double the scores."""
    ours = create_attention("talking_heads", dim=DIM, heads=HEADS, role=role)
    theirs = create_attention("multi_head", dim=DIM, heads=HEADS, role=role)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    inputs = [tokens(), tokens()] if role == "cross" else [tokens()]
    assert_same(ours(*inputs), theirs(*inputs))
    assert_same(ours.attention_map(*inputs), theirs.attention_map(*inputs))


def test_scores_are_mixed_before_the_mask() -> None:
    """A mix of −∞ would be NaN, or +∞ by a negative weight."""
    attention = built("talking_heads", "causal")
    assert (attention.score_mix < 0).any()
    out, *gradients = values_and_gradients(attention, attention, tokens())
    assert all(part.isfinite().all() for part in (out, *gradients))
    assert (attention.attention_map(tokens()).triu(1) == 0).all()


def test_heads_talk_on_both_sides_of_the_softmax() -> None:
    attention = built("talking_heads", kv_heads=2)
    x = tokens()
    q, k = split(attention.query(x)), repeated(split(attention.key(x)))
    scores = q @ k.transpose(-2, -1) / math.sqrt(WIDTH)
    mixed = torch.stack(
        [sum(attention.score_mix[m, i] * scores[:, m] for m in range(HEADS)) for i in range(HEADS)],
        dim=1,
    )
    weights = mixed.softmax(dim=-1)
    expected = torch.stack(
        [
            sum(attention.weight_mix[m, i] * weights[:, m] for m in range(HEADS))
            for i in range(HEADS)
        ],
        dim=1,
    )
    assert_same(attention.attention_map(x), expected)
