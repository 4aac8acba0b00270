"""Traps of sparse attention: windows, strides, global tokens, random blocks, buckets."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from attention_zoo import UserError, create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.attention.inputs import resolve_positions
from attention_zoo.attention.local.big_bird import BigBirdAttention
from attention_zoo.attention.local.pattern import PatternAttention
from attention_zoo.attention.online_softmax import compute_partial_softmax, merge_partial_softmax
from attention_zoo.attention.selected.reformer import ReformerAttention
from attention_zoo.backends.reference import masked_softmax
from attention_zoo.caches import TokenCache
from attention_zoo.masks import Mask
from attention_zoo.zoo import ATTENTION
from tests.conformance.cases import small_options
from tests.conformance.definition import key_mask, packed, visible
from tests.conformance.numbers import assert_same

DIM, HEADS = 16, 2
LONG = 8192
BY_PATTERN = [
    (name, role)
    for name in ATTENTION
    if issubclass(ATTENTION[name], PatternAttention)
    for role in ATTENTION.card(name).roles
]


def build(name: str, role: str = "causal", **sizes: Any) -> Any:
    return create_attention(name, dim=DIM, heads=HEADS, role=role, **sizes)


def compute_map(attention: Attention, x: Tensor) -> Tensor:
    """Return the map [b h q k], after a check that `forward` gives the same weights."""
    weights = attention.attention_map(x)
    attended = attention.apply_weights(weights, attention.values(x))
    assert_same(attention.project_output(attended, x), attention(x))
    return weights


def find_visible_keys(attention: Attention, query: int, length: int) -> list[int]:
    """Return the keys to which the query gives any weight."""
    weights = compute_map(attention, torch.randn(1, length, DIM))
    return weights[0, :, query].ne(0).any(dim=0).nonzero()[:, 0].tolist()


def assert_same_as_naive(attention: Attention, mask: Mask, length: int) -> None:
    x = torch.randn(2, length, DIM)
    seen = visible(attention, mask, 2, length, length)
    assert_same(attention(x, mask=mask), attention.naive(x, x, seen, resolve_positions(x)))


# Patterns.


@pytest.mark.parametrize(("name", "role"), BY_PATTERN)
def test_a_pattern_is_elementwise(name: str, role: str) -> None:
    """It is the same for integers and for tensors, and FlexAttention can make a mask of it."""
    attention = create_attention(name, dim=DIM, role=role, **small_options(name))
    length = 45
    indices = torch.arange(length)
    whole = attention.is_visible(indices[:, None], indices, torch.tensor(length))
    single = [[attention.is_visible(i, j, length) for j in range(length)] for i in range(length)]
    assert torch.equal(whole, torch.tensor(single))
    mask = create_mask(
        lambda b, h, i, j: attention.is_visible(i, j, length), 1, 1, length, length, device="cpu"
    )
    assert torch.equal(mask[0, 0], whole)


@pytest.mark.parametrize(
    ("name", "role", "sizes", "expected"),
    [
        ("sliding_window", "causal", {"window": 3}, [8, 9, 10]),
        ("sliding_window", "causal", {"window": 1}, [10]),
        ("sliding_window", "global", {"window": 4}, [8, 9, 10, 11]),
        ("dilated", "causal", {"window": 3, "dilation": 3}, [4, 7, 10]),
        ("dilated", "causal", {"window": 1, "dilation": 3}, [10]),
        ("dilated", "global", {"window": 4, "dilation": 2}, [6, 8, 10, 12]),
        ("strided_sparse", "causal", {"stride": 4}, [2, 6, 7, 8, 9, 10]),
        ("strided_sparse", "causal", {"stride": 1}, list(range(11))),
        ("strided_sparse", "global", {"stride": 3}, [1, 4, 7, 8, 9, 10, 11, 12, 13]),
        ("longformer", "causal", {"window": 3, "global_tokens": 2}, [0, 1, 8, 9, 10]),
        ("longformer", "global", {"window": 3, "global_tokens": 1}, [0, 9, 10, 11]),
        (
            "big_bird",
            "causal",
            {"block": 2, "global_blocks": 1, "random_blocks": 0, "seed": 0},
            [0, 1, 8, 9, 10],
        ),
        (
            "big_bird",
            "global",
            {"block": 2, "global_blocks": 2, "random_blocks": 0, "seed": 0},
            [0, 1, 2, 3, 8, 9, 10, 11, 12, 13],
        ),
    ],
)
def test_the_eleventh_of_fourteen_sees(
    name: str, role: str, sizes: dict[str, Any], expected: list[int]
) -> None:
    """The keys were counted by hand; a window of W keys contains the query itself."""
    assert find_visible_keys(build(name, role, **sizes), 10, 14) == expected


@pytest.mark.parametrize("name", ["dilated", "strided_sparse", "longformer", "big_bird"])
def test_a_pattern_without_gaps_is_dense_attention(name: str) -> None:
    """So a key that belongs to several parts of the pattern counts once."""
    sizes = {
        "dilated": {"window": 99, "dilation": 1},
        "strided_sparse": {"stride": 50},
        "longformer": {"window": 99, "global_tokens": 3},
        "big_bird": {"block": 5, "global_blocks": 2, "random_blocks": 10, "seed": 0},
    }
    for role in ("causal", "global"):
        sparse, dense = build(name, role, **sizes[name]), build("multi_head", role)
        sparse.load_state_dict(dense.state_dict(), strict=False)
        for part in ("query", "key", "value"):
            if hasattr(sparse, f"{part}_global"):
                getattr(sparse, f"{part}_global").load_state_dict(getattr(dense, part).state_dict())
        x = torch.randn(2, 40, DIM)
        assert_same(sparse(x), dense(x))


@pytest.mark.parametrize(("name", "role"), BY_PATTERN)
def test_padding_at_the_left_moves_a_pattern_along(name: str, role: str) -> None:
    """Blocks, global tokens and strides are counted from the first real token."""
    attention = create_attention(name, dim=DIM, role=role, **small_options(name))
    x, real = torch.randn(2, 50, DIM), key_mask("left", 2, 50)
    alone = attention(x[1:, real[1]])
    assert_same(attention(x, mask=Mask(key_mask=real))[1:, real[1]], alone)


@pytest.mark.parametrize(("name", "role"), BY_PATTERN)
def test_a_pattern_under_a_mask_beyond_its_blocks(name: str, role: str) -> None:
    """The mask may hide the future also where the role does not."""
    attention = create_attention(name, dim=DIM, role=role, **small_options(name))
    mask = Mask(
        causal=True,
        key_mask=key_mask("interior", 2, 40),
        segment_ids=packed([3, 26, 11], 2),
        window=15 if "window" in attention.card.masks else None,
    )
    assert_same_as_naive(attention, mask, 40)


# Decoding.


def test_the_caches_of_windows_hold_what_can_be_seen_again() -> None:
    for name, sizes, expected in (
        ("sliding_window", {"window": 4}, 4),
        ("dilated", {"window": 4, "dilation": 3}, 10),
    ):
        attention = build(name, **sizes)
        cache = attention.new_cache()
        assert isinstance(cache, TokenCache)
        for chunk in (20, 1, 1):
            attention(torch.randn(1, chunk, DIM), cache=cache)
            assert cache.tokens["keys"].shape[2] == expected


# Global tokens.


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("longformer", {"window": 3, "global_tokens": 2}),
        ("big_bird", {"block": 3, "global_blocks": 1, "random_blocks": 1, "seed": 0}),
    ],
)
def test_global_tokens_attend_and_are_attended(name: str, sizes: dict[str, int]) -> None:
    attention = build(name, "global", **sizes)
    weights = compute_map(attention, torch.randn(1, 30, DIM))
    assert (weights[:, :, :2] > 0).all()
    assert (weights[:, :, :, :2] > 0).all()
    past = compute_map(build(name, "causal", **sizes), torch.randn(1, 30, DIM))
    assert (past[:, :, 2:, :2] > 0).all()
    assert (past.triu(1) == 0).all()


def test_global_projections_are_those_of_global_tokens() -> None:
    attention = build("longformer", "global", window=3, global_tokens=2)
    x = torch.randn(1, 12, DIM)
    before = attention(x)
    with torch.no_grad():
        for part in ("query_global", "key_global", "value_global"):
            getattr(attention, part).weight.add_(0.1)
    after = attention(x)
    assert not torch.isclose(after[:, :2], before[:, :2]).any()
    assert_same(after[:, 2:], before[:, 2:])
    with torch.no_grad():
        for part in ("query", "key", "value"):
            getattr(attention, part).weight.add_(0.1)
    assert_same(attention(x)[:, :2], after[:, :2])


# Random blocks.


def build_big_bird(role: str = "causal", **changes: int) -> BigBirdAttention:
    sizes = {"block": 4, "global_blocks": 2, "random_blocks": 3, "seed": 0}
    return build("big_bird", role, **sizes | changes)


@pytest.mark.parametrize("role", ["causal", "global"])
def test_random_blocks_are_others_and_each_drawn_once(role: str) -> None:
    for block in range(2, 20):
        others = {k for k in range(2, block if role == "causal" else 20) if abs(k - block) > 1}
        for seed in range(10):
            blocks = [k for k in build_big_bird(role, seed=seed).draw_blocks(block, 20) if k >= 0]
            assert len(blocks) == len(set(blocks)) == min(3, len(others))
            assert set(blocks) <= others


@pytest.mark.slow
def test_random_blocks_are_drawn_evenly() -> None:
    counts = torch.zeros(20)
    for seed in range(2000):
        counts[build_big_bird("global", seed=seed).draw_blocks(9, 20)] += 1
    others = [k for k in range(2, 20) if abs(k - 9) > 1]
    assert counts.sum() == counts[others].sum() == 6000
    # Each is drawn 400 times in the mean, with a standard deviation of 18.
    assert counts[others].min() > 320 and counts[others].max() < 480


def test_random_blocks_are_fixed_by_seed_and_layer() -> None:
    def draw_all(**changes: int) -> list[list[int]]:
        return [build_big_bird(**changes).draw_blocks(block, 30) for block in range(30)]

    first = draw_all()
    torch.manual_seed(12345)
    assert draw_all() == first
    assert draw_all(seed=1) != first
    assert draw_all(layer=1) != first
    assert draw_all(layer=1) != draw_all(seed=1)


@pytest.mark.parametrize("role", ["causal", "global"])
def test_random_blocks_depend_on_nothing_else_in_the_batch(role: str) -> None:
    attention = build_big_bird(role)
    short, long = torch.randn(45, DIM), torch.randn(80, DIM)
    rows, real = torch.randn(2, 80, DIM), torch.ones(2, 80, dtype=torch.bool)
    for start in (0, 13, 35):
        columns = slice(start, start + 45)
        rows[0, columns], rows[1], real[0] = short, long, False
        real[0, columns] = True
        together = attention(rows, mask=Mask(key_mask=real))
        assert_same(together[0, columns], attention(short[None])[0])
        assert_same(together[1], attention(long[None])[0])


@pytest.mark.parametrize("role", ["causal", "global"])
@pytest.mark.parametrize("global_blocks", [1, 2, 3])
def test_blocks_of_sequences_that_start_within_a_block(role: str, global_blocks: int) -> None:
    attention = build_big_bird(role, global_blocks=global_blocks)
    assert_same_as_naive(attention, Mask(segment_ids=packed([6, 31, 3, 20], 2)), 60)


# Buckets.


def build_reformer(role: str = "causal", **changes: int) -> ReformerAttention:
    return build("reformer", role, **{"buckets": 2, "rounds": 1, "block": 4, "seed": 0} | changes)


def draw_one_bucket(length: int) -> Tensor:
    """Draw tokens [1 n d] that all fall into the same bucket: they differ by a factor only."""
    return torch.randn(1, 1, DIM) * (1.0 + torch.rand(1, length, 1))


def test_queries_see_their_chunk_and_the_one_before() -> None:
    x = draw_one_bucket(14)
    weights = compute_map(build_reformer(), x)[0, 0]
    assert weights[13].nonzero()[:, 0].tolist() == [8, 9, 10, 11, 12]
    assert weights[8].nonzero()[:, 0].tolist() == [4, 5, 6, 7]
    weights = compute_map(build_reformer("global"), x)[0, 0]
    assert weights[8].nonzero()[:, 0].tolist() == [4, 5, 6, 7, 9, 10, 11]


def test_queries_see_themselves_only_where_they_see_nothing_else() -> None:
    attention = build_reformer(buckets=8, rounds=2)
    weights = compute_map(attention, torch.randn(1, 30, DIM))
    itself = weights.diagonal(dim1=-2, dim2=-1)
    alone = weights.ne(0).sum(dim=-1) == 1
    assert ((itself == 1) | (itself == 0)).all()
    assert (itself[~alone] == 0).all()
    assert (itself[..., 0] == 1).all() and (itself[..., 20:] == 0).any()


def test_a_key_of_several_rounds_counts_once() -> None:
    """Keys are seen in one, two or three rounds: that must not add to their weight."""
    attention = build_reformer(buckets=4, rounds=3)
    x = torch.randn(2, 30, DIM)
    q, k, _ = attention.project_qkv(x, resolve_positions(x))
    weights = compute_map(attention, x)
    ratios = weights / (q @ k.transpose(-2, -1)).exp()
    ratios = ratios.masked_fill(torch.eye(30, dtype=torch.bool), 0.0)
    assert_same(ratios, ratios.amax(dim=-1, keepdim=True) * (ratios > 0))


def test_queries_and_keys_are_shared_and_keys_have_length_1() -> None:
    attention = build_reformer(block=50)
    assert not hasattr(attention, "key")
    x = draw_one_bucket(10)
    q, _, _ = attention.project_qkv(x, resolve_positions(x))
    cosines = q @ torch.nn.functional.normalize(q, dim=-1).transpose(-2, -1)
    others = torch.ones(10, 10, dtype=torch.bool).tril(-1)
    expected = masked_softmax(cosines, others)
    expected[..., 0, 0] = 1.0
    assert_same(compute_map(attention, x), expected)


@pytest.mark.parametrize("role", ["causal", "global"])
def test_padding_does_not_enter_buckets(role: str) -> None:
    """Wherever it stands, the real tokens give what they give without it."""
    attention = build_reformer(role, buckets=4, rounds=2)
    x = torch.randn(1, 40, DIM)
    real = torch.rand(1, 40) < 0.6
    alone = attention(x[:, real[0]])
    assert_same(attention(x, mask=Mask(key_mask=real))[:, real[0]], alone)


def test_the_matrices_of_the_buckets_are_saved() -> None:
    """So a loaded model hashes as the saved one does, whatever its seed."""
    ours, theirs = build_reformer(buckets=8), build_reformer(buckets=8, seed=5)
    assert not torch.equal(ours.rotations, theirs.rotations)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 30, DIM)
    assert_same(theirs(x), ours(x))
    assert not torch.equal(build_reformer(layer=1).rotations, build_reformer().rotations)


# Mechanics.


def test_parts_of_a_softmax_make_the_whole() -> None:
    """Also with scores far apart, and in rows that see nothing in one part, or in all."""
    q, k, v = 30.0 * torch.randn(2, 7, 4), torch.randn(2, 12, 4), torch.randn(2, 12, 3)
    seen = torch.rand(2, 7, 12) < 0.5
    seen[:, 1, :5] = False
    seen[:, 2] = False
    parts = [
        compute_partial_softmax(q, k[:, keys], v[:, keys], seen[..., keys], scale=1.0)
        for keys in (slice(0, 5), slice(5, 6), slice(6, 12))
    ]
    assert_same(merge_partial_softmax(parts), masked_softmax(q @ k.transpose(-2, -1), seen) @ v)


@pytest.mark.parametrize("causal", [True, False])
def test_a_mask_of_gathered_keys_is_the_mask_at_their_columns(causal: bool) -> None:
    mask = Mask(
        causal=causal,
        window=9,
        key_mask=key_mask("interior", 2, 20),
        segment_ids=packed([4, 11, 5], 2),
    )
    whole = mask.dense(range(20), range(20), device=torch.device("cpu"))
    assert whole is not None
    queries, keys = torch.arange(20).view(5, 4), torch.randint(-3, 23, (2, 5, 6))
    gathered = mask.gather(queries[None], keys, 20)
    for b in range(2):
        for block, rows in enumerate(queries):
            is_inside = (keys[b, block] >= 0) & (keys[b, block] < 20)
            columns = keys[b, block].clamp(0, 19)
            expected = whole[b, 0][rows][:, columns] & is_inside
            assert torch.equal(gathered[b, block], expected)


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("dilated", {"window": 0, "dilation": 1}, "window must be at least 1, got 0"),
        ("dilated", {"window": 1, "dilation": 0}, "dilation must be at least 1, got 0"),
        ("strided_sparse", {"stride": 0}, "stride must be at least 1"),
        (
            "longformer",
            {"window": 3, "global_tokens": 0},
            "global_tokens must be at least 1, got 0. sliding_window is the one without",
        ),
        (
            "big_bird",
            {"block": 4, "global_blocks": 0, "random_blocks": 1, "seed": 0},
            "global_blocks must be at least 1, got 0",
        ),
        (
            "reformer",
            {"buckets": 3, "rounds": 1, "block": 4, "seed": 0},
            "buckets must be even and at least 2, got 3",
        ),
    ],
)
def test_impossible_sizes_are_refused(name: str, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(name, **sizes)
