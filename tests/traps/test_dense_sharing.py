"""Traps of dense mechanisms whose heads share latents, or keys and values one projection."""

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
