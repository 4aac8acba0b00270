"""Traps of the variants of rotary positions."""

import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_zoo import Unsupported, UserError, create_attention, create_position
from attention_zoo.attention.base import Attention
from attention_zoo.caches import TokenCache
from attention_zoo.masks import Mask
from attention_zoo.models import LanguageModel
from attention_zoo.position.rotary.rotary import RotaryEncoding
from attention_zoo.position.rotary.scaled import OriginalLengthScaledRotary
from attention_zoo.zoo import POSITION
from tests.conformance.numbers import assert_same, default_dtype

DIM, HEADS, WIDTH = 32, 4, 8
LENGTH = 6  # in training
VARIANTS = [name for name in POSITION if issubclass(POSITION[name], RotaryEncoding)]
SCALED = ["linear_interpolation", "ntk", "yarn", "llama3", "dynamic_ntk", "longrope"]
GROWING = ["dynamic_ntk", "longrope"]


def encoding(name: str, **options: Any) -> Any:
    sizes = {"dim": DIM, "heads": HEADS, "head_dim": WIDTH, "role": "causal"}
    return create_position(name, **sizes | options)


def growing(name: str) -> Attention:
    attention = create_attention("multi_head", dim=DIM, heads=HEADS, role="causal")
    attention.attach_position(
        create_position(name, **attention.position_sizes, original_length=LENGTH, base=100.0)
    )
    return attention


def decoded(attention: Attention, x: Tensor, chunks: list[int]) -> Tensor:
    cache, ends = attention.new_cache(), [0]
    for chunk in chunks:
        ends.append(ends[-1] + chunk)
    return torch.cat([attention(x[:, a:b], cache=cache) for a, b in pairwise(ends)], dim=1)


def model(name: str, layers: int = 2, **options: Any) -> LanguageModel:
    return LanguageModel(
        vocabulary_size=11,
        dim=DIM,
        ffn_dim=DIM,
        layers=layers,
        attention=partial(create_attention, "multi_head", heads=HEADS),
        position=partial(create_position, name, **options),
    )


# All of them.


@pytest.mark.parametrize("name", VARIANTS)
def test_angles_are_not_rounded_to_bfloat16(name: str) -> None:
    """In bfloat16 position 257 is 256 and 1003 is 1000."""
    with default_dtype("float32"):
        variant = encoding(name)
        q, k = torch.randn(2, 1, HEADS, 3, WIDTH).bfloat16()
        positions = torch.tensor([[257, 1003, 4097]])
        turn = (
            (lambda q, k: variant.rotate_by_length(q, k, positions, positions))
            if name in GROWING
            else (lambda q, k: variant.rotate(q, k, positions))
        )
        expected = turn(q.double(), k.double())
        with torch.autocast("cpu", torch.bfloat16):
            in_autocast = turn(q, k)
        for ours in (turn(q, k), in_autocast):
            for a, b in zip(ours, expected, strict=True):
                assert a.dtype == torch.bfloat16
                # The rounding of the result alone, of 2⁻⁸ at most, beside angles in float32.
                error = (a.double() - b).abs()
                assert (error <= b.abs() * 2**-8 + b.abs().max() * 5e-4).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_in_bfloat16_keeps_its_frequencies(name: str) -> None:
    """`.bfloat16()` casts buffers: none may hold angles."""
    variant = encoding(name)
    x = torch.zeros(1, 1, 1, WIDTH)
    before = variant.frequencies(x)
    assert torch.equal(variant.bfloat16().frequencies(x), before)


# Of rescaling.


@pytest.mark.parametrize("name", SCALED)
def test_a_rescaling_takes_a_checkpoint_of_rotary(name: str) -> None:
    model(name).load_state_dict(model("rotary").state_dict())


@pytest.mark.parametrize("name", SCALED)
def test_by_a_factor_of_one_nothing_is_rescaled(name: str) -> None:
    q, k = torch.randn(2, 1, HEADS, 9, WIDTH)
    positions = torch.arange(9)[None]
    variant = encoding(name, factor=1.0)
    ours = variant.rotate(q, k, positions)
    if name in GROWING:
        ours = variant.rotate_by_length(q, k, positions, positions)
    assert_same(ours, encoding("rotary").rotate(q, k, positions))


def test_the_factor_of_yarn_counts_twice_in_scores() -> None:
    """It multiplies cosines and sines, of queries and of keys."""
    q, k = torch.randn(2, 1, HEADS, 9, WIDTH)
    positions = torch.arange(9)[None]

    def scores(**options: Any) -> Tensor:
        ours_q, ours_k = encoding("yarn", factor=8.0, **options).rotate(q, k, positions)
        return ours_q @ ours_k.transpose(-2, -1)

    plain = scores(attention_factor=1.0)
    assert_same(scores(), plain * (0.1 * math.log(8.0) + 1.0) ** 2)
    assert_same(scores(attention_factor=3.0), plain * 9.0)


def test_yarn_keeps_fast_pairs_and_slows_the_others() -> None:
    """The ramp runs from the pairs that turn often to those that hardly turn, not back."""
    x = torch.zeros(1)
    options = {"head_dim": 64, "original_length": 2048}
    kept = encoding("yarn", factor=8.0, **options).frequencies(x)
    ratio = kept / encoding("rotary", head_dim=64).frequencies(x)
    turns = 2048 * kept / (2 * math.pi)
    assert (ratio.diff() <= 1e-12).all()
    assert_same(ratio[turns > 40], torch.ones(int((turns > 40).sum())))
    assert_same(ratio[turns < 0.1], torch.full((int((turns < 0.1).sum()),), 1 / 8))


@pytest.mark.parametrize("name", ["ntk", "yarn", "llama3", "longrope", "dynamic_ntk"])
@pytest.mark.parametrize("width", [2, 4])
def test_narrow_heads_have_finite_frequencies(name: str, width: int) -> None:
    """c − 2 is zero for a single pair, and pairs may all turn less than once."""
    variant = encoding(name, head_dim=width)
    q = torch.randn(1, HEADS, 3, width)
    positions = torch.tensor([[0, 511, 2000]])
    turned = (
        *variant.rotate(q, q, positions),
        *variant.rotate_by_length(q, q, positions, positions),
    )
    assert all(x.isfinite().all() for x in turned)


@pytest.mark.parametrize("layout", ["half_split", "interleaved"])
@pytest.mark.parametrize("name", SCALED)
def test_a_part_is_rescaled_as_a_head_of_its_width(name: str, layout: str) -> None:
    """Exponents, ramps and lists of factors count the rotated channels, not all of the head."""
    options: dict[str, Any] = {"layout": layout, "base": 100.0}
    if issubclass(POSITION[name], OriginalLengthScaledRotary):
        options["original_length"] = LENGTH
    whole = encoding(name, head_dim=WIDTH, **options)
    part = encoding(name, head_dim=3 * WIDTH, fraction=1 / 3, **options)
    q, k = torch.randn(2, 1, HEADS, 2 * LENGTH, 3 * WIDTH)
    positions = torch.arange(2 * LENGTH)[None]
    turn = "rotate_by_length" if name in GROWING else "rotate"
    both = (positions, positions) if name in GROWING else (positions,)
    for x, ours, expected in zip(
        (q, k),
        getattr(part, turn)(q, k, *both),
        getattr(whole, turn)(q[..., :WIDTH], k[..., :WIDTH], *both),
        strict=True,
    ):
        assert_same(ours[..., :WIDTH], expected)
        assert torch.equal(ours[..., WIDTH:], x[..., WIDTH:])


def test_mscale_sharpens_what_is_rotated_and_what_is_not() -> None:
    """As DeepSeek does, whose attention multiplies all scores by the square of the second."""
    yarn = encoding("yarn", factor=8.0, fraction=0.5, mscale=0.5, mscale_all_dim=2.0)
    q, positions = torch.randn(1, HEADS, 9, WIDTH), torch.arange(9)[None]
    ours, _ = yarn.rotate(q, q, positions)
    sharper = 1 + 0.1 * math.log(8.0) * torch.tensor([[0.5], [2.0]])
    norms = (part.norm(dim=-1) for part in (ours[..., :4], ours[..., 4:]))
    plain = (part.norm(dim=-1) for part in (q[..., :4], q[..., 4:]))
    for found, before, factor in zip(norms, plain, sharper, strict=True):
        assert_same(found, before * factor)


# Of growing.


@pytest.mark.parametrize("name", GROWING)
def test_cached_keys_do_not_become_stale(name: str) -> None:
    """A key that was turned when the sequence was short has other angles than the query."""
    attention, x = growing(name), torch.randn(2, 3 * LENGTH, DIM)
    whole = attention(x)
    for chunks in ([1] * 3 * LENGTH, [LENGTH, 1, 2 * LENGTH - 1], [LENGTH + 2, LENGTH, 4]):
        assert_same(decoded(attention, x, chunks), whole)


@pytest.mark.parametrize("name", GROWING)
def test_the_cache_keeps_keys_that_are_not_turned(name: str) -> None:
    attention, x = growing(name), torch.randn(2, 2 * LENGTH, DIM)
    cache = attention.new_cache()
    assert isinstance(cache, TokenCache)
    attention(x, cache=cache)
    keys, _ = attention.project_key_value(x)
    assert torch.equal(cache.tokens["keys"], keys)


@pytest.mark.parametrize("name", GROWING)
def test_no_query_sees_how_long_the_sequence_becomes(name: str) -> None:
    """As it would, if the length of the whole sequence decided for all."""
    attention, x = growing(name), torch.randn(2, 3 * LENGTH, DIM)
    whole = attention(x)
    for length in (1, LENGTH, LENGTH + 1, 2 * LENGTH):
        assert_same(attention(x[:, :length]), whole[:, :length])


@pytest.mark.parametrize("name", GROWING)
def test_rows_of_different_lengths_do_not_touch_each_other(name: str) -> None:
    """A prompt padded at the left is as long as its own tokens are."""
    attention, x = growing(name), torch.randn(2, 3 * LENGTH, DIM)
    real = torch.ones(2, 3 * LENGTH, dtype=torch.bool)
    real[1, : LENGTH + 2] = False
    positions = (real.cumsum(dim=1) - 1).clamp(min=0)
    together = attention(x, mask=Mask(key_mask=real), positions=positions)
    assert_same(together[:1], attention(x[:1]))
    assert_same(together[1:, LENGTH + 2 :], attention(x[1:, LENGTH + 2 :]))


def test_within_the_length_of_training_all_queries_share_a_run() -> None:
    """What is no longer than in training costs no more than plain rotary positions."""
    positions = torch.arange(LENGTH + 3)[None]
    first = slice(0, LENGTH)
    dynamic, long = (encoding(name, original_length=LENGTH) for name in GROWING)
    assert dynamic.length_spans(positions) == [
        first,
        *(slice(i, i + 1) for i in range(LENGTH, LENGTH + 3)),
    ]
    assert long.length_spans(positions) == [first, slice(LENGTH, LENGTH + 3)]
    assert (
        dynamic.length_spans(positions[:, :LENGTH])
        == long.length_spans(positions[:, :LENGTH])
        == [first]
    )
    # Of rows that become long at different times; and of packed ones, which start anew.
    other = torch.cat([positions, (positions - 2).clamp(min=0)])
    assert long.length_spans(other) == [first, slice(6, 8), slice(8, 9)]
    assert long.length_spans(torch.cat([positions, positions], dim=1)) == [
        first, slice(6, 9), slice(9, 15), slice(15, 18),
    ]  # fmt: skip


@pytest.mark.parametrize("name", GROWING)
def test_what_grows_is_not_relative(name: str) -> None:
    """The frequencies depend on the place: shifted sequences are others, and the card says so."""
    attention, x = growing(name), torch.randn(1, 5, DIM)
    positions = torch.arange(5)[None]
    assert not POSITION.card(name).relative
    assert not torch.allclose(
        attention(x, positions=positions + LENGTH + 1), attention(x, positions=positions)
    )


@pytest.mark.parametrize("name", ["xpos", *GROWING])
def test_what_needs_causality_is_refused_without(name: str) -> None:
    with pytest.raises(Unsupported, match=f"{name} cannot serve global attention"):
        create_attention("multi_head", dim=DIM, heads=HEADS, role="global", position=name)


# Of partial rotary positions.


@pytest.mark.parametrize(
    ("fraction", "head_dim", "width"),
    [(0.5, 8, 4), (0.25, 64, 16), (0.3, 8, 2), (0.29, 200, 58), (0.1, 8, 2), (1.0, 8, 8)],
)
def test_the_part_is_the_largest_even_one(fraction: float, head_dim: int, width: int) -> None:
    """0.29·200 is 57.99… in floating point; and there is a pair at least."""
    assert encoding("partial_rotary", fraction=fraction, head_dim=head_dim).width == width


def test_frequencies_of_a_part_run_over_that_part() -> None:
    """From 1 to nearly 1/base, as in a head of its width; not the first ones of the whole head."""
    x = torch.zeros(1)
    part = encoding("partial_rotary", head_dim=64).frequencies(x)
    assert torch.equal(part, encoding("rotary", head_dim=32).frequencies(x))
    assert not torch.allclose(part, encoding("rotary", head_dim=64).frequencies(x)[:16])


def test_the_pairs_of_a_part_lie_within_it() -> None:
    """Half-split: channel i goes with i + r/2, not with i + c/2."""
    q = torch.zeros(1, HEADS, 1, WIDTH)
    q[..., 0] = 1.0
    turned, _ = encoding("partial_rotary").rotate(q, q, torch.ones(1, 1, dtype=torch.long))
    assert turned[0, 0, 0].nonzero()[:, 0].tolist() == [0, 2]


# Of xPos.


def test_keys_of_xpos_do_not_depend_on_the_length() -> None:
    """Scales that count from the middle of the sequence would be others for every length."""
    xpos = encoding("xpos")
    x, positions = torch.randn(1, HEADS, 40, WIDTH), torch.arange(40)[None]
    whole = xpos.rotate(x, x, positions)
    for length in (1, 7, 39):
        part = xpos.rotate(x[:, :, :length], x[:, :, :length], positions[:, :length])
        assert all(torch.equal(a, b[:, :, :length]) for a, b in zip(part, whole, strict=True))
    attention = create_attention("multi_head", dim=DIM, heads=HEADS, role="causal", position="xpos")
    tokens = torch.randn(2, 40, DIM)
    assert_same(decoded(attention, tokens, [20, 1, 19]), attention(tokens))


def test_xpos_fades_backwards() -> None:
    """Products shrink with the distance of a key behind its query, and do not grow."""
    ones, positions = torch.ones(1, HEADS, 400, WIDTH), torch.arange(400)[None]
    xpos, rotary = (encoding(name).rotate(ones, ones, positions) for name in ("xpos", "rotary"))
    faded, plain = ((q[..., ::4] @ k[..., ::4].transpose(-2, -1))[0, 0] for q, k in (xpos, rotary))
    assert (faded[399, :-1].abs() < plain[399, :-1].abs()).all()
    assert faded[399, 0].abs() < 0.5 * plain[399, 0].abs()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_xpos_ends_where_its_scales_leave_the_type(dtype: torch.dtype) -> None:
    """With room for queries and keys on both sides, and loudly."""
    with default_dtype("float32"):
        xpos = encoding("xpos", scale_base=64.0)
        longest = xpos.longest_sequence(dtype)
        assert xpos.max_length == xpos.longest_sequence(torch.float32)
        x = torch.full((1, HEADS, 1, WIDTH), 10.0, dtype=dtype)
        last = torch.tensor([[longest - 1]])
        q, k = xpos.rotate(x, x, last)
        smallest = torch.finfo(dtype).tiny
        assert q.abs().max() >= smallest and k.isfinite().all()
        # Their product is that of equal positions.
        product = (q.double() * k.double()).sum(-1)
        expected = 100.0 * WIDTH
        assert ((product - expected).abs() < expected * 4 * torch.finfo(dtype).eps).all()
        with pytest.raises(UserError, match=rf"max_length={longest} in {dtype}.*{longest + 1} tok"):
            xpos.rotate(x, x, last + 1)


def test_a_model_knows_where_xpos_ends() -> None:
    with default_dtype("float32"):
        short = model("xpos", scale_base=1.0)
        assert short.max_length == 34
        short(torch.zeros(1, 34, dtype=torch.long))
        with pytest.raises(UserError, match="max_length=34"):
            short(torch.zeros(1, 35, dtype=torch.long))


# Of rotary_every.


def test_each_layer_knows_its_place() -> None:
    """One encoding for all layers would turn all or none."""
    stack = model("rotary_every", layers=8, every=4).decoder
    attentions = [layer.self_attention.attention for layer in stack.layers]
    assert len({id(attention.position) for attention in attentions}) == 8
    x, order = torch.randn(1, 5, DIM), torch.tensor([[0, 3, 1, 2, 9]])
    blind = [
        torch.allclose(attention(x), attention(x, positions=order)) for attention in attentions
    ]
    assert [i for i, it in enumerate(blind) if it] == [3, 7]


# Of polar positions.


def test_the_content_of_polar_positions_never_turns_a_phase() -> None:
    """Magnitudes are positive, whatever the sign of the channel."""
    polar = encoding("polar")
    x, positions = torch.randn(1, HEADS, 9, WIDTH), torch.arange(9)[None]
    for ours, other in zip(
        polar.rotate(x, x, positions), polar.rotate(-x, -x, positions), strict=True
    ):
        first, second = (
            torch.atan2(heads[..., WIDTH:], heads[..., :WIDTH]) for heads in (ours, other)
        )
        assert_same(first, second)


def test_polar_heads_keep_the_scale_of_their_own_width() -> None:
    """1/√c, though what is multiplied is 2c wide."""
    attention = create_attention(
        "multi_head", dim=DIM, heads=HEADS, role="causal", position="polar"
    )
    x = torch.randn(2, 7, DIM)
    q, k = attention.project_query(x), attention.project_key_value(x)[0]
    q, k = attention.position.rotate(q, k, torch.arange(7)[None])
    scores = (q @ k.transpose(-2, -1) / WIDTH**0.5).masked_fill(
        torch.ones(7, 7, dtype=torch.bool).triu(1), float("-inf")
    )
    assert_same(attention.attention_map(x), scores.softmax(-1))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_polar_phases_belong_to_query_heads(kv_heads: int) -> None:
    """Heads that share a key may have different phases."""
    attention = create_attention(
        "grouped_query", dim=DIM, heads=HEADS, kv_heads=kv_heads, role="causal", position="polar"
    )
    x = torch.randn(1, 7, DIM)
    before = attention.attention_map(x)
    with torch.no_grad():
        attention.position.phase[1] = -1.0
    after = attention.attention_map(x)
    changed = [not torch.allclose(after[:, head], before[:, head]) for head in range(HEADS)]
    assert changed == [False, True, False, False]


def test_polar_phases_learn_from_their_start_and_stay_within_bounds() -> None:
    polar = encoding("polar")
    x, positions = torch.randn(1, HEADS, 9, WIDTH), torch.arange(9)[None]

    def scores() -> Tensor:
        q, k = polar.rotate(x, x, positions)
        return (q @ k.transpose(-2, -1)).tril()

    scores().sin().sum().backward()
    assert polar.phase.grad.ne(0).all()
    with torch.no_grad():
        polar.phase.fill_(0.7)
        outside = scores()
        polar.phase.fill_(0.0)
    assert_same(outside, scores())
