"""Caches keep what they must, and no more."""

import pytest
import torch

from attention_zoo import create_attention
from attention_zoo.caches import LayeredCache, StateCache, TokenCache


def numbered(start: int, stop: int) -> dict[str, torch.Tensor]:
    """Positions [1 t 1], and keys [1 1 t 1] that are the same."""
    positions = torch.arange(start, stop)[None, :, None]
    return {"keys": positions[:, None].double(), "positions": positions}


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_the_last_tokens_are_kept(window: int | None) -> None:
    cache = TokenCache(window)
    for start, stop in ((0, 5), (5, 6), (6, 10)):
        held = min(start, start if window is None else window)
        tokens = cache.append(**numbered(start, stop))
        assert tokens["positions"].flatten().tolist() == list(range(start - held, stop))
        assert torch.equal(tokens["keys"], tokens["positions"][:, None].double())
        assert cache.length == stop
    kept = 10 if window is None else min(window, 10)
    assert [part.shape[-2] for part in cache.tokens.values()] == [kept, kept]


def test_a_windowed_cache_lets_go_of_what_it_drops() -> None:
    """A slice of a long prompt would hold on to the whole of it."""
    cache = TokenCache(4)
    cache.append(**numbered(0, 1000))
    for kept in cache.tokens.values():
        assert kept.untyped_storage().nbytes() == 4 * kept.element_size()
    with torch.no_grad():  # where tokens are added in a buffer
        for start, stop in ((1000, 1001), (1001, 2000)):
            tokens = cache.append(**numbered(start, stop))
    assert tokens["positions"].flatten().tolist() == list(range(997, 2000))
    for kept in cache.tokens.values():
        assert kept.untyped_storage().nbytes() == 4 * kept.element_size()


def random_tokens(count: int, *, rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 2, count, 4)


@pytest.mark.parametrize("window", [None, 5])
def test_added_tokens_do_not_move_the_others(window: int | None) -> None:
    """The memory of 300 tokens, added one by one, is changed some times alone."""
    tokens, cache, places = random_tokens(300), TokenCache(window), []
    with torch.no_grad():
        for end in range(1, 301):
            joined = cache.append(keys=tokens[:, :, end - 1 : end])["keys"]
            first = 0 if window is None else max(0, end - 1 - window)
            assert torch.equal(joined, tokens[:, :, first:end])
            places.append(joined.untyped_storage().data_ptr())
    assert len(dict.fromkeys(places)) < 10


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("index", [[0, 1, 2], [2, 2, 0], [1], [0, 0, 1, 2]], ids=str)
def test_rows_in_a_buffer_are_reordered(window: int | None, index: list[int]) -> None:
    tokens, rows = random_tokens(12), torch.tensor(index)
    cache, added = TokenCache(window), random_tokens(1, rows=len(index))
    with torch.inference_mode():
        for chunk in tokens.split(4, dim=2):
            cache.append(keys=chunk)
        cache.reorder(rows)
    with torch.no_grad():  # What inference mode has made is not written to here.
        joined = cache.append(keys=added)["keys"]
    kept = tokens[rows] if window is None else tokens[rows, :, -window:]
    assert torch.equal(joined, torch.cat([kept, added], dim=2))


def test_gradients_pass_through_cached_tokens() -> None:
    tokens, cache = random_tokens(3).requires_grad_(), TokenCache()
    for token in tokens.split(1, dim=2):
        joined = cache.append(keys=token)["keys"]
    cache.reorder(torch.tensor([0, 0, 1]))
    (joined.sum() + cache.tokens["keys"].sum()).backward()
    assert tokens.grad is not None and tokens.grad[:, 0, 0, 0].tolist() == [3, 2, 1]


def test_reordering_takes_positions_along() -> None:
    cache = TokenCache()
    keys = torch.arange(4.0).view(2, 1, 2, 1)
    cache.append(keys=keys, positions=torch.tensor([[0, 1], [5, 6]])[..., None])
    cache.reorder(torch.tensor([1, 0, 1]))
    assert torch.equal(cache.tokens["keys"], keys[[1, 0, 1]])
    assert cache.tokens["positions"][..., 0].tolist() == [[5, 6], [0, 1], [5, 6]]
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
    assert cache.tokens["keys"].shape == cache.tokens["values"].shape == (2, 1, 5, 4)
