"""Caches keep what they must, and no more."""

import pytest
import torch

from attention_zoo import create_attention
from attention_zoo.caches import KeyValueCache, LayeredCache, StateCache


def numbered(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys, values [1 1 t 1] and positions [1 t] that are their own places."""
    places = torch.arange(start, stop)[None]
    return places[:, None, :, None].double(), -places[:, None, :, None].double(), places


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_the_last_tokens_are_kept(window: int | None) -> None:
    cache = KeyValueCache(window)
    for start, stop in ((0, 5), (5, 6), (6, 10)):
        held = min(start, start if window is None else window)
        keys, values, positions = cache.append(*numbered(start, stop))
        assert positions[0].tolist() == list(range(start - held, stop))
        assert torch.equal(keys, positions[:, None, :, None].double())
        assert torch.equal(values, -keys)
        assert cache.length == stop
    assert cache.keys is not None and cache.values is not None and cache.positions is not None
    kept = 10 if window is None else min(window, 10)
    assert cache.keys.shape[2] == cache.values.shape[2] == cache.positions.shape[1] == kept


def test_a_windowed_cache_lets_go_of_what_it_drops() -> None:
    """A slice of a long prompt would hold on to the whole of it."""
    cache = KeyValueCache(4)
    cache.append(*numbered(0, 1000))
    for kept in (cache.keys, cache.values, cache.positions):
        assert kept is not None and kept.untyped_storage().nbytes() == 4 * kept.element_size()


def test_reordering_takes_positions_along() -> None:
    cache = KeyValueCache()
    keys = torch.arange(4.0).view(2, 1, 2, 1)
    cache.append(keys, -keys, torch.tensor([[0, 1], [5, 6]]))
    cache.reorder(torch.tensor([1, 0, 1]))
    assert cache.keys is not None and cache.values is not None and cache.positions is not None
    assert torch.equal(cache.keys, keys[[1, 0, 1]]) and torch.equal(cache.values, -cache.keys)
    assert cache.positions.tolist() == [[5, 6], [0, 1], [5, 6]]
    assert cache.length == 2


def test_all_caches_of_a_model_are_reordered() -> None:
    states = [StateCache(), StateCache()]
    for state in states:
        state.state = (torch.tensor([1.0, 2.0]),)
    layered = LayeredCache([[states[0], None], [None, states[1]]])
    layered.reorder(torch.tensor([1, 1]))
    assert all(state.state is not None and state.state[0].tolist() == [2, 2] for state in states)


def test_one_head_of_keys_is_cached_by_multi_query() -> None:
    attention = create_attention("multi_query", dim=16, heads=4, role="causal")
    cache = attention.new_cache()
    attention(torch.randn(2, 5, 16), cache=cache)
    assert cache.keys.shape == cache.values.shape == (2, 1, 5, 4)
