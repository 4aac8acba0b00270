"""Traps of attention to sinks and a window: positions are places in the cache."""

import pytest
import torch

from attention_zoo import Unsupported, UserError
from attention_zoo.attention.local.streaming import SinkCache
from attention_zoo.masks import Mask
from tests.conformance.definition import packed
from tests.conformance.numbers import assert_same
from tests.conformance.test_caches import decode
from tests.traps.dense import DIM, assert_whole, built, tokens

WINDOW, SINKS = 3, 2
SIZES = {"window": WINDOW, "sinks": SINKS}


@pytest.mark.parametrize("position", [None, "rotary", "alibi", "xpos", "kerple"])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_the_kept_tokens_are_a_text_of_their_own(position: str | None, kv_heads: int) -> None:
    """Each output is that of multi-head attention over the first tokens and the last ones alone."""
    options = {"kv_heads": kv_heads, "position": position}
    ours = built("streaming", "causal", **SIZES, **options)
    theirs = built("grouped_query", "causal", **options)
    theirs.load_state_dict(ours.state_dict())
    x = tokens(14)
    out = ours(x)
    for i in range(14):
        kept = [j for j in range(i + 1) if j < SINKS or i - j < WINDOW]
        assert_same(out[:, i], theirs(x[:, kept])[:, -1])
    cached = decode(ours, ours.new_cache(), x, [1] * 7 + [5, 2])
    assert_same(cached, out)


def test_each_packed_sequence_has_sinks_of_its_own() -> None:
    """In one pass and in chunks that hold the end of one sequence and the start of others."""
    attention = built("streaming", "causal", **SIZES, position="rotary")
    x, ids = tokens(16), packed([9, 1, 6], 2)
    out = attention(x, mask=Mask(segment_ids=ids))
    for row, (first, second) in enumerate([(9, 10), (1, 7)]):
        alone = [attention(part) for part in x[row : row + 1].tensor_split([first, second], dim=1)]
        assert_same(out[row : row + 1], torch.cat(alone, dim=1))
    for chunks in ([8, 8], [9, 2, 5], [4] * 4, [1] * 16):
        decoded = decode(attention, attention.new_cache(), x, chunks, mask=Mask(segment_ids=ids))
        assert_same(decoded, out)


def test_the_cache_keeps_the_window_and_the_sinks() -> None:
    attention = built("streaming", "causal", **SIZES, position="rotary")
    cache = attention.new_cache()
    assert isinstance(cache, SinkCache)
    decode(attention, cache, tokens(20), [15, 1, 4])
    kept = [*cache.tokens.values(), *cache.sinks.values()]
    numbers = sum(part[0].numel() for part in kept if part.is_floating_point())
    assert numbers == attention.decode_state(20) == attention.decode_state(10**6)
    assert numbers == 2 * DIM * (WINDOW + SINKS)


@pytest.mark.parametrize(("window", "sinks"), [(1, 1), (1, 5), (6, 1), (20, 20)])
def test_every_window_and_number_of_sinks_keeps_the_contract(window: int, sinks: int) -> None:
    assert_whole(built("streaming", "causal", window=window, sinks=sinks, position="rotary"))


def test_distances_stay_within_the_cache() -> None:
    """However long the text is: the weights of a constant text come to rest."""
    attention = built("streaming", "causal", **SIZES, position="rotary")
    x = tokens(1).expand(-1, 60, -1)
    weights = attention.attention_map(x)
    seen = [0, 1, 57, 58, 59]
    before = [0, 1, 27, 28, 29]
    assert_same(weights[:, :, 59][..., seen], weights[:, :, 29][..., before])


def test_a_window_would_cut_off_the_sinks() -> None:
    attention = built("streaming", "causal", **SIZES)
    with pytest.raises(Unsupported, match="window"):
        attention(tokens(), mask=Mask(window=2))
    with pytest.raises(UserError, match="sinks must be at least 1"):
        built("streaming", "causal", window=3, sinks=0)
