"""Traps of dense mechanisms with projections, values or outputs of their own."""

import math

import pytest
import torch
from torch import Tensor, nn

from attention_zoo import UserError, create_attention
from attention_zoo.caches import TokenCache
from attention_zoo.masks import Mask
from tests.conformance.numbers import assert_same, default_dtype, values_and_gradients
from tests.traps.dense import (
    DIM,
    HEADS,
    LENGTH,
    WIDTH,
    assert_whole,
    built,
    expose_heads,
    repeated,
    rms,
    split,
    tokens,
)

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


def test_a_headwise_gate_scales_whole_heads() -> None:
    """Of the head's own number, not of a channel's."""
    attention = built("gated", "cross", gate="headwise", kv_heads=2)
    assert attention.gate.out_features == HEADS
    x, context = tokens(5), tokens(9)
    heads = attention.attention_map(x, context) @ attention.values(x, context)
    gates = torch.sigmoid(attention.gate(x)).transpose(1, 2)[..., None]
    joined = (heads * gates).transpose(1, 2).flatten(-2)
    assert_same(attention(x, context), joined @ attention.output.weight.T)
    assert_whole(built("gated", "causal", gate="headwise", position="rotary"))


def test_a_gate_is_of_a_known_kind() -> None:
    with pytest.raises(UserError, match="gate must be one of elementwise, headwise, got 'both'"):
        built("gated", gate="both")


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
