"""Traps of dense mechanisms whose heads share latents, or keys and values one projection."""

import math

import pytest
import torch

from attention_zoo import UserError
from attention_zoo.caches import TokenCache
from tests.conformance.numbers import assert_same
from tests.traps.dense import (
    HEADS,
    LENGTH,
    WIDTH,
    assert_whole,
    built,
    expose_heads,
    repeated,
    split,
    tokens,
)

# grouped_latent


def test_each_latent_serves_the_heads_of_its_group_alone() -> None:
    attention = built("grouped_latent", "causal")
    x = tokens()
    expose_heads(attention)
    before = split(attention(x))
    with torch.no_grad():
        attention.latent[0].weight[: attention.latent_dim].zero_()
    after = split(attention(x))
    assert (after[:, : HEADS // 2] == 0).all()
    assert_same(after[:, HEADS // 2 :], before[:, HEADS // 2 :])


def test_latents_are_normed_apart() -> None:
    """Not over all latents: one latent's size has no effect on any output."""
    attention = built("grouped_latent", "causal")
    x = tokens()
    expected = attention(x)
    with torch.no_grad():
        attention.latent[0].weight[attention.latent_dim :].mul_(100.0)
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-4)


def test_one_latent_of_all_heads_is_multi_head_latent_attention() -> None:
    ours = built("grouped_latent", "causal", latent_heads=1, latent_dim=5, position="rotary")
    theirs = built("multi_head_latent", "causal", latent_dim=5, position="rotary")
    theirs.latent[0].load_state_dict(ours.latent[0].state_dict())
    with torch.no_grad():
        theirs.latent[1].weight.copy_(ours.latent[2].weight[0])
    for name in ("query", "shared_key", "key", "value", "output"):
        getattr(theirs, name).load_state_dict(getattr(ours, name).state_dict())
    x = tokens()
    assert_same(ours(x), theirs(x))


def test_two_latents_keep_as_much_as_multi_head_latent_attention() -> None:
    ours, theirs = built("grouped_latent", "causal"), built("multi_head_latent", "causal")
    assert ours.decode_state(9) == theirs.decode_state(9)
    cache = ours.new_cache()
    assert isinstance(cache, TokenCache)
    ours(tokens(), cache=cache)
    shapes = {name: tuple(part.shape) for name, part in cache.tokens.items()}
    assert shapes["values"] == (2, 2, LENGTH, 2 * WIDTH)
    assert shapes["keys"] == (2, 1, LENGTH, WIDTH // 2)


@pytest.mark.parametrize("latent_dim", [1, 3, 40])
def test_grouped_latents_of_every_width_keep_the_contract(latent_dim: int) -> None:
    options = {"latent_dim": latent_dim, "query_latent_dim": 3, "rope_dim": 6}
    assert_whole(built("grouped_latent", "causal", position="rotary", **options))


def test_latent_heads_must_divide_the_heads() -> None:
    with pytest.raises(UserError, match="heads must be a multiple of latent_heads, got heads=4"):
        built("grouped_latent", latent_heads=3)


# grouped_tied


def test_keys_are_the_first_channels_of_the_values_and_a_shared_part() -> None:
    attention = built("grouped_tied", kv_heads=2)
    x = tokens()
    values = repeated(split(attention.key_value(x)))
    shared = attention.shared_key(x)[:, None].expand(-1, HEADS, -1, -1)
    k = torch.cat([values[..., : WIDTH // 2], shared], dim=-1)
    q = split(attention.query(x))
    expected = (q @ k.transpose(-2, -1) / math.sqrt(WIDTH)).softmax(dim=-1)
    assert_same(attention.attention_map(x), expected)
    assert_same(attention.values(x), values)


def test_what_is_tied_is_not_rotated() -> None:
    """Positions act on the shared part alone, and by the distance."""
    attention = built("grouped_tied", kv_heads=2, position="rotary")
    assert attention.position.head_dim == WIDTH // 2
    x = tokens()
    reversed_positions = torch.arange(LENGTH).flip(0)[None]
    assert not torch.allclose(attention(x), attention(x, positions=reversed_positions))
    assert_same(attention.values(x), attention.values(x, positions=reversed_positions))
    with torch.no_grad():
        attention.shared_key.weight.zero_()
    assert_same(attention(x), attention(x, positions=reversed_positions))


def test_the_cache_holds_half_of_grouped_query_attention_and_one_key() -> None:
    ours = built("grouped_tied", "causal", kv_heads=2)
    theirs = built("grouped_query", "causal", kv_heads=2)
    assert ours.decode_state(6) == theirs.decode_state(6) // 2 + 6 * (WIDTH // 2)
    cache = ours.new_cache()
    assert isinstance(cache, TokenCache)
    ours(tokens(), cache=cache)
    assert cache.tokens["values"].shape == (2, 2, LENGTH, WIDTH)
    assert cache.tokens["keys"].shape == (2, 1, LENGTH, WIDTH // 2)


@pytest.mark.parametrize("options", [{"kv_heads": 1}, {"kv_heads": 4, "rope_dim": 2}])
def test_tied_heads_of_every_number_keep_the_contract(options: dict[str, int]) -> None:
    assert_whole(built("grouped_tied", "causal", position="rotary", **options))


def test_a_part_of_a_head_is_tied() -> None:
    with pytest.raises(UserError, match=f"got rope_dim={WIDTH} of {WIDTH}"):
        built("grouped_tied", kv_heads=2, rope_dim=WIDTH)
