"""Of the variants that compare every query with every key."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_zoo import UserError, create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.caches import TokenCache
from attention_zoo.masks import Mask
from tests.conformance.cases import moved
from tests.conformance.definition import visible
from tests.conformance.numbers import assert_same, default_dtype, values_and_gradients
from tests.conformance.test_caches import decode

DIM, HEADS, WIDTH, LENGTH = 16, 4, 4, 7
ROLES = ("causal", "global", "cross")


def built(name: str, role: str = "global", **options: Any) -> Attention:
    """With parameters that have moved from their start, which may be a neutral one."""
    attention = create_attention(name, dim=DIM, heads=HEADS, role=role, **options)
    return moved(attention, scale=0.5)


def tokens(length: int = LENGTH) -> Tensor:
    return torch.randn(2, length, DIM)


def split(x: Tensor) -> Tensor:
    """[b t hc] -> [b h t c]."""
    return x.unflatten(-1, (-1, WIDTH)).transpose(1, 2)


def repeated(x: Tensor) -> Tensor:
    """[b g t c] -> [b h t c]."""
    return x.repeat_interleave(HEADS // x.shape[1], dim=1)


def expose_heads(attention: Attention) -> None:
    """Let the output be the heads, joined."""
    with torch.no_grad():
        attention.output.weight.copy_(torch.eye(DIM))


def assert_whole(attention: Attention) -> None:
    """With options that are not the yaml's: the naive form, and decoding in chunks."""
    x = tokens()
    sees = visible(attention, Mask(), 2, LENGTH, LENGTH)
    assert_same(
        values_and_gradients(attention, attention, x),
        values_and_gradients(
            lambda x: attention.naive(x, x, sees, torch.arange(x.shape[1])[None]), attention, x
        ),
    )
    if attention.role == "causal":
        assert_same(decode(attention, attention.new_cache(), x, [4, 1, 2]), attention(x))


# qk_norm


def rms(x: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean(dim=-1, keepdim=True) + 1e-6)


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


# gated


def test_the_gate_is_the_querys_and_comes_after_attention() -> None:
    """In cross-attention too; it is no gate of values, nor of what the projection gives."""
    attention = built("gated", "cross")
    x, context = tokens(5), tokens(9)
    attended = attention.attention_map(x, context) @ attention.values(x, context)
    joined = attended.transpose(1, 2).flatten(-2)
    expected = (joined * torch.sigmoid(attention.gate(x))) @ attention.output.weight.T
    assert_same(attention(x, context), expected)


def test_a_closed_gate_lets_nothing_through() -> None:
    attention = built("gated", bias=True)
    with torch.no_grad():
        attention.gate.bias.fill_(-1e4)
        attention.output.bias.zero_()
    assert (attention(tokens()) == 0).all()


# differential


def test_layers_are_counted_from_zero() -> None:
    """The paper counts them from 1: 0.8 − 0.6·exp(−0.3·(l − 1))."""
    starts = [
        create_attention(
            "differential", dim=DIM, heads=HEADS, role="causal", layer=layer
        ).initial_mix
        for layer in (0, 1, 30)
    ]
    assert starts == pytest.approx([0.2, 0.8 - 0.6 * math.exp(-0.3), 0.8], abs=1e-3)


def test_the_map_is_a_difference_of_softmaxes_of_the_halves() -> None:
    """Each softmax sums to one, so the difference sums to 1 − λ; scores are scaled by √(c/2)."""
    attention = built("differential", kv_heads=2, layer=2)
    x = tokens()
    q, k = split(attention.query(x)), repeated(split(attention.key(x)))
    maps = [
        (q[..., half] @ k[..., half].transpose(-2, -1) / math.sqrt(2)).softmax(dim=-1)
        for half in (slice(0, 2), slice(2, 4))
    ]
    start = 0.8 - 0.6 * math.exp(-0.6)
    (q1, q2), (k1, k2) = attention.query_mix, attention.key_mix
    mix = torch.exp(q1 @ k1) - torch.exp(q2 @ k2) + start
    assert_same(attention.attention_map(x), maps[0] - mix * maps[1])


def test_heads_are_normed_apart_and_scaled_by_the_start() -> None:
    """By 1 − λ_init, not by 1 − λ; a norm over the width would let heads share it."""
    attention = built("differential", layer=1)
    expose_heads(attention)
    heads = split(attention(tokens()))
    size = heads.square().mean(dim=-1).sqrt()
    torch.testing.assert_close(
        size, torch.full_like(size, 0.2 + 0.6 * math.exp(-0.3)), rtol=1e-2, atol=0.0
    )


def test_a_rotation_turns_each_half_by_itself() -> None:
    """As whole heads of c/2 channels: with their frequencies, and without mixing the halves."""
    attention = built("differential", role="causal", position="rotary", head_dim=8, kv_heads=2)
    assert attention.position.head_dim == attention.position_dim == 4
    x, positions = tokens(), torch.arange(LENGTH)[None]
    q, k = (p(x).unflatten(-1, (-1, 8)).transpose(1, 2) for p in (attention.query, attention.key))
    first, second = (
        torch.tril(torch.ones(LENGTH, LENGTH)).log()
        + a @ repeated(b).transpose(-2, -1) / math.sqrt(4)
        for a, b in (
            attention.position.rotate(q[..., half], k[..., half], positions)
            for half in (slice(0, 4), slice(4, 8))
        )
    )
    expected = first.softmax(dim=-1) - attention.mix() * second.softmax(dim=-1)
    assert_same(attention.attention_map(x), expected)
    assert_whole(attention)


def test_a_head_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(UserError, match="must be even, got 3"):
        built("differential", head_dim=3)


# multi_head_latent


def test_decoding_makes_no_keys_and_no_values() -> None:
    """The up-projections are absorbed by queries and outputs."""
    attention = built("multi_head_latent", "causal", position="rotary")
    x = tokens(33)
    cache = attention.new_cache()
    expected = attention(x)
    attention(x[:, :32], cache=cache)

    def refuse(*_: object) -> None:
        raise AssertionError("keys or values were made of the cached latents")

    for projection in (attention.key, attention.value):
        projection.register_forward_pre_hook(refuse)
    assert_same(attention(x[:, 32:], cache=cache), expected[:, 32:])
    with pytest.raises(AssertionError, match="were made"):
        attention(x)


def test_only_the_latent_and_one_key_are_kept() -> None:
    attention = built("multi_head_latent", "causal", latent_dim=5, rope_dim=6, position="rotary")
    cache = attention.new_cache()
    assert isinstance(cache, TokenCache)
    attention(tokens(), cache=cache)
    shapes = {name: tuple(part.shape) for name, part in cache.tokens.items()}
    shapes.pop("positions")
    assert sorted(shapes.values()) == [(2, 1, LENGTH, 5), (2, 1, LENGTH, 6)]


def test_scores_are_scaled_over_both_parts() -> None:
    attention = built("multi_head_latent", latent_dim=5, rope_dim=6, query_latent_dim=3)
    x = tokens()
    latent = rms(attention.latent[0](x)) * attention.latent[1].weight
    compressed = rms(attention.query_latent[0](x)) * attention.query_latent[1].weight
    q = attention.query(compressed).unflatten(-1, (HEADS, WIDTH + 6)).transpose(1, 2)
    shared = attention.shared_key(x)[:, None].expand(-1, HEADS, -1, -1)
    k = torch.cat([split(attention.key(latent)), shared], dim=-1)
    expected = (q @ k.transpose(-2, -1) / math.sqrt(WIDTH + 6)).softmax(dim=-1)
    assert_same(attention.attention_map(x), expected)
    expose_heads(attention)
    heads = expected @ split(attention.value(latent))
    assert_same(attention(x), heads.transpose(1, 2).flatten(-2))


@pytest.mark.parametrize("latent_dim", [1, 3, 40])
def test_latents_of_every_width_keep_the_contract(latent_dim: int) -> None:
    options = {"latent_dim": latent_dim, "query_latent_dim": 3, "rope_dim": 6}
    assert_whole(built("multi_head_latent", "causal", position="rotary", **options))


def test_a_rotation_turns_the_part_of_its_own_only() -> None:
    attention = built("multi_head_latent", rope_dim=6, position="rotary")
    assert attention.position.head_dim == 6
    x = tokens()
    reversed_positions = torch.arange(LENGTH).flip(0)[None]
    assert not torch.allclose(attention(x), attention(x, positions=reversed_positions))
    with torch.no_grad():
        attention.shared_key.weight.zero_()
    assert_same(attention(x), attention(x, positions=reversed_positions))


def test_cross_attention_has_no_rotary_part() -> None:
    attention = built("multi_head_latent", "cross")
    assert attention.scale == WIDTH**-0.5
    assert attention.query.out_features == HEADS * WIDTH
    assert not hasattr(attention, "shared_key")
    cache = attention.new_cache()
    attention(tokens(1), tokens(9), cache=cache)
    assert sum(part[0].numel() for part in cache.tokens.values() if part.is_floating_point()) == (
        9 * attention.latent_dim
    )


# tensor_product


def outer_products(projection: nn.Module, x: Tensor, rank: int) -> Tensor:
    """1/R Σ_r a_r ⊗ b_r of each token, [b h t c], in loops."""
    joined = projection(x).unflatten(-1, (rank, HEADS + WIDTH))
    result = torch.zeros(len(x), HEADS, x.shape[1], WIDTH)
    for b in range(len(x)):
        for t in range(x.shape[1]):
            parts = [torch.outer(row[:HEADS], row[HEADS:]) for row in joined[b, t]]
            result[b, :, t] = torch.stack(parts).sum(dim=0) / rank
    return result


def test_heads_are_means_of_outer_products() -> None:
    attention = built("tensor_product", query_rank=3, key_rank=2, value_rank=5)
    x = tokens()
    q = outer_products(attention.query, x, 3)
    k = outer_products(attention.key, x, 2)
    v = outer_products(attention.value, x, 5)
    weights = (q @ k.transpose(-2, -1) / math.sqrt(WIDTH)).softmax(dim=-1)
    assert_same(attention.attention_map(x), weights)
    assert_same(attention.values(x), v)
    assert_same(attention(x), attention.project_output(weights @ v, x))


def test_factors_are_kept_and_rotated_once() -> None:
    """Rotated factors make rotated keys; what is kept is not rotated again in the next step."""
    attention = built("tensor_product", "causal", position="rotary", key_rank=3, value_rank=1)
    x, positions = tokens(), torch.arange(LENGTH)[None]
    q = outer_products(attention.query, x, 6)
    k = outer_products(attention.key, x, 3)
    q, k = attention.position.rotate(q, k, positions)
    scores = q @ k.transpose(-2, -1) / math.sqrt(WIDTH)
    scores = scores + torch.tril(torch.ones(LENGTH, LENGTH)).log()
    assert_same(attention.attention_map(x), scores.softmax(dim=-1))
    assert_whole(attention)
    cache = attention.new_cache()
    assert isinstance(cache, TokenCache)
    attention(x, cache=cache)
    shapes = {name: tuple(part.shape[1:]) for name, part in cache.tokens.items()}
    assert shapes == {
        "keys": (3, LENGTH, WIDTH),
        "key_heads": (3, LENGTH, HEADS),
        "values": (1, LENGTH, WIDTH),
        "value_heads": (1, LENGTH, HEADS),
        "positions": (LENGTH, 1),
    }


# laser


def test_large_values_do_not_overflow() -> None:
    """exp(1000) does, in any precision: the largest value is taken off first."""
    attention = built("laser", "causal")
    x = tokens()
    with torch.no_grad():
        attention.value.weight.mul_(300.0)
    expose_heads(attention)
    weights, v = attention.attention_map(x), split(attention.value(x))
    assert v.max() > 800.0
    # The sum over keys in log space, number by number.
    terms = weights.log()[..., None] + v[:, :, None]
    out, *gradients = values_and_gradients(attention, attention, x)
    last = terms[:, :, -1].logsumexp(dim=-2)
    assert_same(split(out)[:, :, -1], last)
    assert all(part.isfinite().all() for part in (out, *gradients))


def test_attention_to_equal_values_is_their_value() -> None:
    """log Σ a·exp(v) = v: the weights are inside the logarithm, and sum to one."""
    attention = built("laser")
    expose_heads(attention)
    x = tokens(1).expand(-1, LENGTH, -1)
    assert_same(attention(x), attention.value(x))


def test_padding_does_not_drown_the_values() -> None:
    """Beside a value of 10⁴ in a padded place all real ones would be exp(−10⁴) = 0."""
    with default_dtype("float32"):
        attention = built("laser")
        x, real = tokens(), torch.ones(2, LENGTH, dtype=torch.bool)
        real[:, -2:] = False
        out = attention(x, mask=Mask(key_mask=real))[:, :-2]
        x[:, -2:] *= 1e4
        drowned = attention(x, mask=Mask(key_mask=real))[:, :-2]
        torch.testing.assert_close(drowned, out)


def test_a_value_far_below_the_others_gives_finite_gradients() -> None:
    """It vanishes beside them, which is no logarithm of zero."""
    with default_dtype("float32"):
        attention = built("laser", "causal")
        x = tokens()
        x[:, 1:] *= 1e4
        out, *gradients = values_and_gradients(attention, attention, x)
    assert all(part.isfinite().all() for part in (out, *gradients))


def test_weights_cannot_be_dropped() -> None:
    with pytest.raises(UserError, match="laser has no option 'dropout'"):
        built("laser", dropout=0.1)


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
