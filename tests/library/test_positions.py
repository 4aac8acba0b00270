"""Each encoding against its paper's formula, in plain loops."""

import math
from fractions import Fraction
from functools import partial

import pytest
import torch
from torch import Tensor

from attention_zoo import UserError, create_attention, create_position
from attention_zoo.models import LanguageModel
from attention_zoo.position.base import PositionalEncoding
from attention_zoo.zoo import Role
from tests.conformance.numbers import assert_same, default_dtype

POSITIONS = torch.tensor([[0, 1, 2, 7, 301], [4, 4, 0, 1, 50]])


def encoding(
    name: str, *, heads: int = 4, head_dim: int = 6, role: Role = "causal", **options: object
) -> PositionalEncoding:
    return create_position(name, dim=16, heads=heads, head_dim=head_dim, role=role, **options)


def test_sinusoids_are_those_of_the_paper() -> None:
    """PE(t, 2i) = sin(t / 10000^(2i/d)), PE(t, 2i + 1) = cos(…): Vaswani et al. 2017, §3.5."""
    x = torch.randn(2, 5, 16)
    expected = x.clone()
    for row, column, channel in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        place = int(POSITIONS[row, column])
        angle = place / 10000 ** ((channel - channel % 2) / 16)
        expected[row, column, channel] += math.sin(angle) if channel % 2 == 0 else math.cos(angle)
    assert_same(encoding("sinusoidal").embed(x, POSITIONS), expected)


def test_embeddings_meet_sinusoids_at_the_scale_of_the_paper() -> None:
    """The table's rows are multiplied by √d, Vaswani et al. 2017, §3.4."""
    model = LanguageModel(
        vocabulary_size=5,
        dim=16,
        ffn_dim=16,
        layers=1,
        attention=partial(create_attention, "single_head"),
        position=partial(create_position, "sinusoidal"),
    )
    tokens = torch.tensor([[3, 1]])
    assert_same(model.embedding(tokens), model.embedding.weight[tokens] * 4.0)


def rotated(x: Tensor, place: int, pairs: list[tuple[int, int]]) -> Tensor:
    """Eq. 34 of Su et al. 2021 for one vector, pair by pair."""
    out = x.clone()
    for i, (first, second) in enumerate(pairs):
        angle = place * 10000.0 ** (-2 * i / len(x))
        out[first] = x[first] * math.cos(angle) - x[second] * math.sin(angle)
        out[second] = x[second] * math.cos(angle) + x[first] * math.sin(angle)
    return out


@pytest.mark.parametrize(
    ("layout", "pairs"),
    [("half_split", [(0, 3), (1, 4), (2, 5)]), ("interleaved", [(0, 1), (2, 3), (4, 5)])],
)
def test_rotary_turns_the_pairs_of_its_layout(layout: str, pairs: list[tuple[int, int]]) -> None:
    q, k = torch.randn(2, 4, 5, 6), torch.randn(2, 2, 5, 6)
    ours = encoding("rotary", layout=layout).rotate(q, k, POSITIONS)
    for x, turned in zip((q, k), ours, strict=True):
        for row, head, column in torch.cartesian_prod(*map(torch.arange, x.shape[:3])):
            expected = rotated(x[row, head, column], int(POSITIONS[row, column]), pairs)
            assert_same(turned[row, head, column], expected)


def test_the_layouts_of_rotary_differ_by_a_permutation() -> None:
    q, k = torch.randn(2, 4, 5, 6), torch.randn(2, 2, 5, 6)
    halves, woven = encoding("rotary"), encoding("rotary", layout="interleaved")
    order = [0, 2, 4, 1, 3, 5]
    for ours, theirs in zip(
        halves.rotate(q[..., order], k[..., order], POSITIONS),
        woven.rotate(q, k, POSITIONS),
        strict=True,
    ):
        assert_same(ours, theirs[..., order])


@pytest.mark.parametrize("layout", ["half_split", "interleaved"])
def test_rotary_products_depend_on_the_distance(layout: str) -> None:
    rotary = encoding("rotary", layout=layout)
    q, k = torch.randn(1, 1, 1, 6).expand(1, 1, 5, 6), torch.randn(1, 1, 1, 6).expand(1, 1, 5, 6)
    positions = torch.arange(5)[None]
    turned_q, turned_k = rotary.rotate(q, k, positions)
    products = turned_q[0, 0] @ turned_k[0, 0].T
    far_q, far_k = rotary.rotate(q, k, positions + 1000)
    assert_same(far_q[0, 0] @ far_k[0, 0].T, products)
    for distance in range(-4, 5):
        diagonal = products.diagonal(distance)
        assert_same(diagonal, diagonal[:1].expand_as(diagonal))


def test_rotary_angles_are_not_rounded_to_bfloat16() -> None:
    """In bfloat16 position 257 is 256 and 1003 is 1000."""
    with default_dtype("float32"):
        rotary = encoding("rotary")
        q, positions = torch.randn(1, 1, 3, 6).bfloat16(), torch.tensor([[257, 1003, 4097]])
        turned, _ = rotary.rotate(q, q, positions)
        with torch.autocast("cpu", torch.bfloat16):
            in_autocast, _ = rotary.rotate(q, q, positions)
    for ours in (turned, in_autocast):
        assert ours.dtype == torch.bfloat16
        for i, place in enumerate(positions[0].tolist()):
            expected = rotated(q[0, 0, i].double(), place, [(0, 3), (1, 4), (2, 5)])
            torch.testing.assert_close(ours[0, 0, i].double(), expected, rtol=1e-2, atol=5e-3)


def test_sinusoidal_angles_are_not_rounded_to_bfloat16() -> None:
    with default_dtype("float32"):
        x, positions = torch.zeros(1, 3, 16), torch.tensor([[257, 1003, 4097]])
        sinusoidal = encoding("sinusoidal")
        ours = sinusoidal.embed(x.bfloat16(), positions)
        assert torch.equal(ours, sinusoidal.embed(x, positions).bfloat16())


@pytest.mark.parametrize("name", ["single_head", "multi_head", "grouped_query", "linear"])
def test_values_are_not_rotated(name: str) -> None:
    """A token that sees only itself gives its value, wherever it stands."""
    heads = {} if name == "single_head" else {"heads": 2}
    groups = {"kv_heads": 1} if name == "grouped_query" else {}
    attention = create_attention(name, dim=16, role="causal", position="rotary", **heads, **groups)
    x = torch.randn(2, 1, 16)
    near, far = (attention(x, positions=torch.tensor([[place]])) for place in (0, 37))
    assert_same(far, near)


@pytest.mark.parametrize("heads", [1, 2, 6, 8, 12])
@pytest.mark.parametrize("role", ["causal", "global"])
def test_alibi_lowers_scores_by_the_slopes_of_the_paper(heads: int, role: Role) -> None:
    """The geometric sequence from 2^(−8/n) with that ratio; else as the authors' code."""

    def slopes(n: int) -> list[float]:
        if math.log2(n).is_integer():
            return [(2 ** (-8 / n)) ** i for i in range(1, n + 1)]
        lower = 2 ** int(math.log2(n))
        return slopes(lower) + slopes(2 * lower)[0::2][: n - lower]

    keys = torch.tensor([[0, 1, 9], [3, 5, 2]])
    bias = encoding("alibi", heads=heads, role=role).score_bias(POSITIONS, keys)
    assert bias is not None and bias.shape == (2, heads, 5, 3)
    for row, head, i, j in torch.cartesian_prod(*map(torch.arange, bias.shape)).tolist():
        distance = abs(int(POSITIONS[row, i]) - int(keys[row, j]))
        assert bias[row, head, i, j].item() == pytest.approx(-slopes(heads)[head] * distance)


def test_alibi_of_eight_heads() -> None:
    """As printed in Press et al. 2022, §3: 1/2¹ … 1/2⁸."""
    bias = encoding("alibi", heads=8).score_bias(torch.tensor([[1]]), torch.tensor([[0]]))
    assert bias is not None
    assert bias.flatten().tolist() == [-(2.0**-i) for i in range(1, 9)]


def bucket(relative: int, *, bidirectional: bool, buckets: int, longest: int) -> int:
    """As `_relative_position_bucket` of Mesh TensorFlow says, with logarithms compared exactly."""
    first, distance = 0, -relative
    if bidirectional:
        buckets //= 2
        first = buckets if distance < 0 else 0
        distance = abs(distance)
    else:
        distance = max(distance, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    # The largest m ≤ n − 1 with log(distance/exact) / log(longest/exact)·n ≥ m.
    n = buckets - exact
    steps = [m for m in range(n) if Fraction(distance, exact) ** n >= Fraction(longest, exact) ** m]
    return first + exact + max(steps)


@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (8, 20), (16, 64), (32, 256)])
@pytest.mark.parametrize("role", ["causal", "global"])
def test_t5_buckets_are_those_of_the_paper(role: Role, buckets: int, longest: int) -> None:
    t5 = encoding("t5_bias", role=role, buckets=buckets, max_distance=longest)
    distances = range(-300, 301)
    ours = t5.bucket(torch.tensor(list(distances))).tolist()
    expected = [
        bucket(d, bidirectional=role == "global", buckets=buckets, longest=longest)
        for d in distances
    ]
    assert ours == expected
    assert set(ours) <= set(range(buckets))


def test_t5_boundaries() -> None:
    """By hand, of 32 buckets up to 128 tokens; key minus query."""
    causal = encoding("t5_bias", role="causal").bucket
    assert causal(torch.tensor([5, 0, -1, -15, -16, -127, -128, -999])).tolist() == [
        0, 0, 1, 15, 16, 31, 31, 31,
    ]  # fmt: skip
    both = encoding("t5_bias", role="global").bucket
    assert both(torch.tensor([0, -1, 1, -7, 7, -8, 8, -16, 16, -999, 999])).tolist() == [
        0, 1, 17, 7, 23, 8, 24, 10, 26, 15, 31,
    ]  # fmt: skip


def test_t5_adds_the_entry_of_head_and_bucket() -> None:
    t5 = encoding("t5_bias", role="global")
    bias = t5.score_bias(POSITIONS, POSITIONS)
    assert bias is not None and bias.shape == (2, 4, 5, 5)
    for row, head, i, j in torch.cartesian_prod(*map(torch.arange, bias.shape)).tolist():
        relative = int(POSITIONS[row, j] - POSITIONS[row, i])
        own = bucket(relative, bidirectional=True, buckets=32, longest=128)
        assert bias[row, head, i, j] == t5.table.weight[own, head]


def test_learned_positions_are_rows_of_the_table() -> None:
    learned = encoding("learned", max_length=302)
    x = torch.randn(2, 5, 16)
    assert_same(learned.embed(x, POSITIONS), x + learned.table.weight[POSITIONS])


def test_learned_positions_end_at_max_length() -> None:
    learned = encoding("learned", max_length=8)
    x = torch.randn(1, 9, 16)
    learned.embed(x[:, :8], torch.arange(8)[None])
    with pytest.raises(UserError, match=r"max_length=8, got a sequence of 9 tokens"):
        learned.embed(x, torch.arange(9)[None])


def test_a_model_knows_the_limit_of_its_positions() -> None:
    for position, options, limit in (("learned", {"max_length": 8}, 8), ("rotary", {}, None)):
        model = LanguageModel(
            vocabulary_size=5,
            dim=16,
            ffn_dim=16,
            layers=1,
            attention=partial(create_attention, "single_head"),
            position=partial(create_position, position, **options),
        )
        assert model.max_length == limit
        if limit:
            cache = model.new_cache()
            model(torch.zeros(1, 8, dtype=torch.long), cache=cache)
            with pytest.raises(UserError, match="max_length=8, got a sequence of 9"):
                model(torch.zeros(1, 1, dtype=torch.long), cache=cache)


def test_without_positions_an_encoder_is_a_bag_of_words() -> None:
    attention = create_attention("multi_head", dim=16, heads=4, role="global", position="none")
    x, order = torch.randn(2, 7, 16), torch.randperm(7)
    assert_same(attention(x[:, order]), attention(x)[:, order])
