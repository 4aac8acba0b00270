"""Of encodings that act on scores by a formula or by content, and of positions that are drawn."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_zoo import Unsupported, UserError, create_attention, create_position
from attention_zoo.masks import Mask
from attention_zoo.models import LanguageModel
from attention_zoo.position.absolute.randomized import takes_positions
from attention_zoo.position.base import PositionalEncoding, ScoreInputs
from attention_zoo.zoo import POSITION
from tests.conformance.configs import parameters
from tests.conformance.definition import key_mask
from tests.conformance.numbers import assert_same, default_dtype, values_and_gradients

DIM, HEADS = 16, 4
POSITIONS = torch.arange(9)[None]
BY_PLACES = ["kerple", "sandwich", "fire"]


def built(name: str, **options: Any) -> PositionalEncoding:
    sizes = {"dim": DIM, "heads": HEADS, "head_dim": 4, "role": "causal"}
    return create_position(name, **sizes | options)


def model(position: str, **options: Any) -> LanguageModel:
    return LanguageModel(
        vocabulary_size=11,
        dim=DIM,
        ffn_dim=DIM,
        layers=2,
        dropout=0.0,
        attention=partial(create_attention, "multi_head", heads=HEADS),
        position=partial(create_position, position, **options),
    )


@pytest.mark.parametrize("name", BY_PLACES)
def test_rows_that_share_positions_share_the_bias(name: str) -> None:
    assert built(name).score_bias(POSITIONS, POSITIONS).shape == (1, HEADS, 9, 9)


@pytest.mark.parametrize("name", BY_PLACES)
def test_a_bias_has_a_shape_on_the_meta_device(name: str) -> None:
    """Which has no autocast that could be disabled."""
    positions = POSITIONS.to("meta")
    assert built(name).to("meta").score_bias(positions, positions).shape == (1, HEADS, 9, 9)


@pytest.mark.parametrize("name", BY_PLACES)
def test_distances_are_not_rounded_to_half_precision(name: str) -> None:
    """In bfloat16 position 257 is 256, and 1003 is 1000."""
    with default_dtype("float32"):
        position = built(name)
        queries, keys = torch.tensor([[1003, 1009]]), torch.tensor([[257, 1000, 1003]])
        exact = position.score_bias(queries, keys)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(position.score_bias(queries, keys), exact)
        if name == "sandwich":
            return
        # Parameters that are themselves in half precision have distances in full still.
        position.bfloat16()
        rough = position.score_bias(queries, keys)
    assert rough.dtype == torch.float32 and rough[0, 0].unique().numel() == 6


@pytest.mark.parametrize("name", ["kerple", "sandwich", "fire", "dynamic_bias"])
def test_blocks_of_a_window_have_their_own_bias(name: str) -> None:
    """As the whole under a mask: positions are positions, not columns of a block."""
    local = create_attention("sliding_window", dim=DIM, heads=HEADS, role="causal", window=4)
    whole = create_attention("multi_head", dim=DIM, heads=HEADS, role="causal")
    local.attach_position(built(name))
    whole.attach_position(built(name))
    whole.load_state_dict(local.state_dict())
    x, mask = torch.randn(2, 150, DIM), Mask(key_mask=key_mask("left", 2, 150))
    positions = torch.arange(0, 450, 3)[None]
    assert_same(
        local(x, mask=mask, positions=positions),
        whole(x, mask=Mask(window=4, key_mask=mask.key_mask), positions=positions),
    )


# KERPLE


@pytest.mark.parametrize("kernel", ["log", "power"])
def test_parameters_stay_positive_and_keep_learning(kernel: str) -> None:
    """Whatever an optimiser does to them; a clamp would leave them without a gradient."""
    kerple = built("kerple", kernel=kernel)
    for sign in (-1.0, 1.0):
        kerple.zero_grad()
        optimizer = torch.optim.SGD(kerple.parameters(), lr=5.0)
        for parameter in kerple.parameters():
            parameter.grad = sign * torch.ones_like(parameter)
        optimizer.step()
        optimizer.step()
        optimizer.step()
        first, second = kerple.coefficients()
        assert (first > 0).all() and (second > 0).all()
        assert kernel == "log" or (second <= 2).all()
        kerple.zero_grad()
        kerple.score_bias(POSITIONS, POSITIONS).sum().backward()
        for parameter in kerple.parameters():
            assert parameter.grad.isfinite().all() and (parameter.grad != 0).all()


def test_no_distance_has_a_finite_gradient() -> None:
    """0^r has the derivative 0^r·log 0 by r."""
    kerple = built("kerple", kernel="power")
    bias = kerple.score_bias(POSITIONS[:, :1], POSITIONS[:, :1])
    bias.sum().backward()
    assert (bias == 0).all() and all((p.grad == 0).all() for p in kerple.parameters())


@pytest.mark.parametrize("kernel", ["log", "power"])
def test_the_kernel_falls_with_the_distance(kernel: str) -> None:
    bias = built("kerple", kernel=kernel).score_bias(
        torch.tensor([[5000]]), torch.arange(5001)[None]
    )
    assert (bias.diff(dim=-1) > 0).all() and (bias[..., -1] == 0).all()


# Sandwich


def test_the_products_are_of_sinusoids_and_end_somewhere() -> None:
    """A sum of distances without their cosines, as one implementation has it, has no end."""
    bias = built("sandwich").score_bias(
        torch.tensor([[10**6]]), torch.arange(10**6 - 999, 10**6 + 1)[None]
    )
    assert (bias <= 1e-9).all() and bias[..., -1].abs().max() < 1e-9
    assert bias.min() > -128 / (8 / HEADS)
    # Sharpest just behind the query: each further token counts less.
    assert (bias[..., -2] - bias[..., -1] < bias[..., -100] - bias[..., -99]).all()


@pytest.mark.parametrize("heads", [1, 3, 8, 12])
def test_heads_are_compressed_up_to_eight(heads: int) -> None:
    """By 8n/h, n from 1: the later the head, the wider it looks."""
    bias = (
        built("sandwich", heads=heads)
        .score_bias(torch.tensor([[7]]), torch.tensor([[0]]))
        .flatten()
    )
    plain = sum(torch.tensor(7 * 10000 ** (-2 * i / 128)).cos() for i in range(64)) - 64
    for n in range(heads):
        assert bias[n].item() == pytest.approx(plain.item() / (8 * (n + 1) / heads))


def test_the_width_of_the_sinusoids_is_not_the_models() -> None:
    near, far = (built("sandwich", dim=dim).score_bias(POSITIONS, POSITIONS) for dim in (16, 64))
    assert_same(near, far)
    assert not list(built("sandwich").parameters())


# FIRE


def test_the_normaliser_is_the_querys_place_not_the_length() -> None:
    """What follows changes nothing, and below the threshold only distances count."""
    fire = built("fire", threshold=4.0)
    bias = fire.score_bias(POSITIONS, POSITIONS)
    assert_same(fire.score_bias(POSITIONS[:, :6], POSITIONS[:, :6]), bias[:, :, :6, :6])
    assert_same(bias[:, :, 4, 1:5], bias[:, :, 3, :4])
    assert not torch.allclose(bias[:, :, 6, 1:5], bias[:, :, 5, :4])
    # Beyond it the first key is at the end of the scale, however far that is.
    ends = torch.tensor([[8, 100, 10**6]])
    first = fire.score_bias(ends, POSITIONS[:, :1])
    torch.testing.assert_close(first, first[:, :, :1].expand_as(first), rtol=0, atol=1e-5)


def test_a_query_stands_where_its_position_says() -> None:
    """Not at its row: in decoding, and in a packed row, they differ."""
    fire = built("fire", threshold=4.0)
    bias = fire.score_bias(POSITIONS, POSITIONS)
    assert_same(fire.score_bias(POSITIONS[:, -1:], POSITIONS), bias[:, :, -1:])
    packed = torch.cat([POSITIONS, POSITIONS], dim=1)
    assert_same(fire.score_bias(packed, packed)[:, :, 9:, 9:], bias)


@pytest.mark.parametrize("threshold", [4.0, 512.0])
def test_scale_and_threshold_learn(threshold: float) -> None:
    """Below the threshold; beyond it the place of the query takes its part."""
    fire = built("fire", threshold=threshold)
    fire.score_bias(POSITIONS[:, :4], POSITIONS[:, :4]).sum().backward()
    assert fire.log_scale.grad != 0 and fire.threshold_factor.grad != 0
    fire.zero_grad()
    far = POSITIONS + int(threshold) + 1
    fire.score_bias(far, far).sum().backward()
    assert fire.log_scale.grad != 0 and fire.threshold_factor.grad == 0


def test_a_threshold_of_nothing_divides_by_nothing() -> None:
    fire = built("fire")
    with torch.no_grad():
        fire.threshold_factor.zero_()
    bias = fire.score_bias(POSITIONS, POSITIONS)
    bias.sum().backward()
    assert bias.isfinite().all() and all(p.grad.isfinite().all() for p in fire.parameters())


def test_keys_ahead_of_a_query_stay_within_the_scale_in_global_attention() -> None:
    """|t − s| ≤ max(t, s): the share of a distance is at most 1 on either side."""
    fire = built("fire", role="global", threshold=1.0)
    bias = fire.score_bias(POSITIONS, POSITIONS)
    assert_same(bias, bias.transpose(-2, -1))


# Dynamic bias


def cable(**options: Any) -> Any:
    attention = create_attention("multi_head", dim=DIM, heads=HEADS, role="causal")
    attention.attach_position(built("dynamic_bias", **options))
    return attention


def read(position: PositionalEncoding, x: Tensor) -> Tensor:
    length, dtype = x.shape[1], position.step.weight.dtype
    q, positions = torch.zeros(len(x), HEADS, length, 4, dtype=dtype), torch.arange(length)[None]
    visible = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    kept = position.cached_features(x)
    return position.content_bias(ScoreInputs(q, q, positions, positions, visible, 0.5, kept))


@pytest.mark.parametrize("side", ["left", "interior", "right"])
def test_padding_between_moves_nothing_away(side: str) -> None:
    attention = cable()
    x, real = torch.randn(2, 12, DIM), key_mask(side, 2, 12)
    out = attention(torch.where(real[..., None], x, 50.0), mask=Mask(key_mask=real))
    assert_same(out[1, real[1]], attention(x[1, real[1]][None])[0])


def test_a_token_moves_away_those_before_it_and_not_itself() -> None:
    position, x = built("dynamic_bias"), torch.randn(1, 6, DIM)
    bias = read(position, x)
    assert (bias.diagonal(dim1=-2, dim2=-1) == 0).all()
    other = x.clone()
    other[:, 3] += 1.0
    changed = (read(position, other) != bias).any(dim=1)[0]
    assert changed.nonzero().tolist() == [[t, s] for t in range(3, 6) for s in range(3)]


def test_no_bias_is_positive() -> None:
    """Also where the layer's output is far from zero, on either side."""
    for size in (1.0, 1e3):
        bias = read(built("dynamic_bias"), size * torch.randn(2, 9, DIM))
        assert (bias <= 0).all() and bias.isfinite().all()


@pytest.mark.slow
def test_near_tokens_keep_their_digits_in_a_long_sequence() -> None:
    """In float32 the difference of two sums of thousands would be off by 10⁻⁴ and more."""
    position, x = built("dynamic_bias"), torch.randn(1, 3000, DIM)
    exact = read(position, x)[..., -1, -5:]
    ours = read(position.float(), x.float())[..., -1, -5:]
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-6)


def test_steps_are_summed_in_float32_under_autocast() -> None:
    with default_dtype("float32"):
        position = built("dynamic_bias")
        with torch.autocast("cpu", torch.bfloat16):
            assert (
                position.cached_features(torch.randn(2, 5, DIM))["context_bias"].dtype
                == torch.float32
            )
        kept = position.bfloat16().cached_features(torch.randn(2, 5, DIM).bfloat16())[
            "context_bias"
        ]
    assert kept.dtype == torch.float32


# Randomized positions


def test_draws_are_in_order_distinct_and_new_each_time() -> None:
    randomized = built("randomized", num_positions=64, max_length=16)
    draws = torch.stack([randomized.map_positions(torch.arange(16)[None])[0] for _ in range(50)])
    assert (draws.diff(dim=1) > 0).all() and draws.min() >= 0 and draws.max() < 64
    assert len(draws.unique(dim=0)) == 50


def test_short_sequences_are_trained_on_far_positions() -> None:
    randomized = built("randomized", num_positions=2048, max_length=512)
    draws = torch.cat([randomized.map_positions(torch.arange(8)[None]) for _ in range(100)])
    assert draws.max() > 1900 and draws[:, 0].max() > 300


def test_a_whole_range_leaves_nothing_to_draw() -> None:
    randomized = built("randomized", num_positions=9, max_length=9)
    assert torch.equal(randomized.map_positions(POSITIONS), POSITIONS)


def test_evaluating_neither_draws_nor_looks_at_the_length() -> None:
    """Otherwise a token would move as others come: cached keys would be stale."""
    randomized = built("randomized", num_positions=64, max_length=16).eval()
    whole = randomized.map_positions(torch.arange(16)[None])
    assert torch.equal(whole, randomized.map_positions(torch.arange(16)[None]))
    assert (whole.diff() > 0).all() and whole.max() < 64
    assert torch.equal(randomized.map_positions(torch.arange(5)[None]), whole[:, :5])
    assert torch.equal(randomized.map_positions(torch.tensor([[15]])), whole[:, 15:])


INSIDE = [name for name in POSITION if takes_positions(POSITION.card(name))]


@pytest.mark.parametrize("name", INSIDE)
def test_every_hook_of_the_inner_encoding_is_handed_on(name: str) -> None:
    """With as many positions as tokens may come, it is the inner encoding alone."""
    ours = model("randomized", encoding=name, num_positions=40, max_length=40).eval()
    limit = {"max_length": 40} if "max_length" in parameters(POSITION[name]) else {}
    theirs = model(name, **limit).eval()
    theirs.load_state_dict({k.replace(".inner.", "."): v for k, v in ours.state_dict().items()})
    x = torch.randint(0, 11, (2, 30))
    assert_same(ours(x), theirs(x))
    cache, outputs = ours.new_cache(), []
    for chunk in x.split([3, 1, 20, 6], dim=1):
        outputs.append(ours(chunk, cache=cache))
    assert_same(torch.cat(outputs, dim=1), theirs(x))


@pytest.mark.parametrize("name", INSIDE)
def test_an_instance_acts_on_what_its_encoding_acts_on(name: str) -> None:
    card, inner = built("randomized", encoding=name).card, POSITION.card(name)
    assert card.acts == ("positions", *inner.acts)
    assert (card.name, card.roles) == ("randomized", inner.roles)
    assert built("randomized").card is POSITION.card("randomized")


@pytest.mark.parametrize(("attention", "name"), [("linear", "alibi"), ("additive", "rotary")])
def test_attention_refuses_it_as_it_refuses_the_inner_encoding(attention: str, name: str) -> None:
    made = create_attention(attention, dim=DIM, heads=HEADS, role="causal")
    with pytest.raises(Unsupported, match=f"{attention} cannot take position=randomized"):
        made.attach_position(built("randomized", encoding=name), shared=True)
    made.attach_position(built("randomized"), shared=True)


@pytest.mark.parametrize("name", ["randomized", "none", "fire"])
def test_what_takes_no_places_is_refused(name: str) -> None:
    with pytest.raises(Unsupported, match=rf"got encoding={name}\. Choices: .*sinusoidal"):
        built("randomized", encoding=name)


def test_a_learned_table_has_a_row_for_each_place() -> None:
    randomized = built("randomized", encoding="learned", num_positions=64, max_length=16)
    assert randomized.inner.table.weight.shape == (64, DIM)
    for _ in range(20):
        randomized.embed(torch.zeros(1, 16, DIM), randomized.map_positions(torch.arange(16)[None]))


def test_a_longer_sequence_is_refused_with_the_number() -> None:
    randomized = model("randomized", num_positions=64, max_length=8)
    assert randomized.max_length == 8
    x = torch.randint(0, 11, (2, 9))
    for mode in (True, False):
        randomized.train(mode)
        randomized(x[:, :8])
        with pytest.raises(UserError, match="randomized has max_length=8, got a sequence of 9"):
            randomized(x)


def test_decoding_with_places_that_are_drawn_anew_is_refused() -> None:
    randomized = model("randomized").train()
    cache = randomized.new_cache()
    randomized(torch.randint(0, 11, (2, 3)), cache=cache)
    with pytest.raises(UserError, match=r"model\.eval\(\)"):
        randomized(torch.randint(0, 11, (2, 1)), cache=cache)


@pytest.mark.slow
def test_training_with_drawn_places_compiles() -> None:
    torch.compiler.reset()
    randomized = model("randomized", encoding="rotary").train()
    compiled = torch.compile(randomized, fullgraph=True, backend="eager")
    x = torch.randint(0, 11, (2, 9))
    results = []
    for run in (compiled, randomized):
        torch.manual_seed(0)
        results.append(values_and_gradients(lambda run=run: run(x), randomized))
    assert_same(*results)


# Options


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("kerple", {"kernel": "linear"}),
        ("sandwich", {"embedding_dim": 7}),
        ("sandwich", {"embedding_dim": 0}),
        ("fire", {"hidden": 0}),
        ("fire", {"log_scale": 0.0}),
        ("fire", {"threshold": -1.0}),
        ("randomized", {"max_length": 0}),
        ("randomized", {"max_length": 4096}),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, options: dict[str, Any]) -> None:
    ((option, value),) = options.items()
    with pytest.raises(UserError, match=f"{option}.*{value}"):
        built(name, **options)


# hard_alibi


def test_a_window_is_of_positions_not_of_columns() -> None:
    """Which decoding and packed sequences count apart."""
    hard = built("hard_alibi", windowed_heads=2)
    bias = hard.score_bias(torch.tensor([[10, 11]]), torch.tensor([[8, 9, 10]]))
    hidden = (bias[0] < -1e4).tolist()
    assert hidden[0] == [[True, True, False], [True, True, True]]
    assert hidden[1] == [[True, False, False], [True, True, False]]
    assert hidden[2] == hidden[3] == [[False] * 3] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_hidden_key_has_no_weight_in_any_precision(dtype: torch.dtype) -> None:
    attention = create_attention("multi_head", dim=DIM, heads=HEADS, role="causal")
    attention.attach_position(create_position("hard_alibi", **attention.position_sizes))
    attention = attention.to(dtype)
    x = torch.randn(2, 9, DIM).to(dtype)
    # The first head sees itself alone.
    assert torch.equal(
        attention.attention_map(x)[:, 0], torch.eye(9, dtype=dtype).expand(2, -1, -1)
    )
    real = key_mask("left", 2, 9)
    out = attention(x, mask=Mask(key_mask=real))
    assert out.isfinite().all()
    other = torch.where(real[..., None], x, 9.0 * x)
    assert torch.equal(attention(other, mask=Mask(key_mask=real))[real], out[real])


def test_heads_of_a_window_are_among_the_heads() -> None:
    with pytest.raises(UserError, match="at most the number of heads, 4, got 5"):
        built("hard_alibi", windowed_heads=5)
