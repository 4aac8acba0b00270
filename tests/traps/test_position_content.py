"""Of encodings that read queries and keys."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_zoo import create_attention, create_position
from attention_zoo.attention.base import Attention
from attention_zoo.masks import Mask
from attention_zoo.position.base import PositionalEncoding, ScoreInputs
from attention_zoo.zoo import POSITION, Role
from tests.conformance.cases import Case
from tests.conformance.definition import key_mask, packed
from tests.conformance.numbers import assert_same, default_dtype, values_and_gradients
from tests.conformance.test_caches import decode
from tests.conformance.test_modules import bfloat16_errors
from tests.traps.memory import measure_memory

DIM, HEADS, WIDTH = 16, 4, 4
NAMES = ("contextual", "disentangled", "shaw", "transformer_xl")
every_name = pytest.mark.parametrize("name", NAMES)
every_pair = pytest.mark.parametrize(
    ("name", "role"), [(name, role) for name in NAMES for role in POSITION.card(name).roles]
)


def built(name: str, role: Role = "causal", **options: Any) -> PositionalEncoding:
    """With parameters away from zero."""
    sizes: dict[str, Any] = {"dim": DIM, "heads": HEADS, "head_dim": WIDTH, "role": role}
    encoding = create_position(name, **sizes, **options)
    with torch.no_grad():
        for parameter in encoding.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return encoding


def attending(name: str, role: Role = "causal", **options: Any) -> Attention:
    attention = create_attention("multi_head", dim=DIM, heads=HEADS, role=role)
    attention.attach_position(built(name, role, **options))
    return attention


def read(
    encoding: PositionalEncoding,
    q: Tensor,
    k: Tensor,
    q_positions: Tensor,
    k_positions: Tensor,
    visible: Tensor | None = None,
) -> Tensor:
    found = encoding.content_bias(ScoreInputs(q, k, q_positions, k_positions, visible, 0.5, {}))
    assert found is not None
    return found


def heads(length: int) -> Tensor:
    return torch.randn(2, HEADS, length, WIDTH)


def row(*positions: int) -> Tensor:
    return torch.tensor([positions])


def zeroed(*parameters: Tensor) -> None:
    for parameter in parameters:
        torch.nn.init.zeros_(parameter)


# All of them


@pytest.mark.parametrize("kind", ["window", "key_mask", "segment_ids"])
@pytest.mark.parametrize("chunks", [[1] * 11, [5, 1, 1, 4], [33, 33, 1, 4]], ids=str)
@every_name
def test_chunks_are_one_pass_under_a_mask(name: str, chunks: list[int], kind: str) -> None:
    """The memory's offset is that of the positions, and a gate counts what its query sees."""
    length = sum(chunks)
    real, segment_ids = key_mask("left", 2, length), packed([length - 6, 1, 5], 2)
    mask, positions = {
        "window": (Mask(window=3), torch.arange(length)[None]),
        "key_mask": (Mask(key_mask=real), (real.cumsum(dim=1) - 1).clamp(min=0)),
        "segment_ids": (Mask(segment_ids=segment_ids), torch.arange(length).flip(0)[None] // 2),
    }[kind]
    attention, x = attending(name), torch.randn(2, length, DIM)
    outputs = decode(attention, attention.new_cache(), x, chunks, mask=mask, positions=positions)
    assert_same(outputs, attention(x, mask=mask, positions=positions))


@pytest.mark.parametrize("side", ["left", "interior", "right"])
@every_pair
def test_content_of_padding_is_irrelevant(name: str, role: Role, side: str) -> None:
    attention, x = attending(name, role), torch.randn(2, 70, DIM)
    real = key_mask(side, 2, 70)
    other = torch.where(real[..., None], x, 100.0 * torch.randn_like(x))
    mask = Mask(key_mask=real)
    assert_same(attention(other, mask=mask)[real], attention(x, mask=mask)[real])


@every_pair
def test_a_query_that_sees_nothing_gives_zeros(name: str, role: Role) -> None:
    mask = Mask(key_mask=torch.tensor([[False] * 7, [True] * 7]))
    attention = attending(name, role)
    out, *gradients = values_and_gradients(
        lambda x: attention(x, mask=mask), attention, torch.randn(2, 7, DIM)
    )
    assert (out[0] == 0).all() and (out[1] != 0).any(dim=-1).all()
    assert all(gradient.isfinite().all() for gradient in gradients)


@every_name
def test_nothing_comes_from_the_future(name: str) -> None:
    """Also where it is longer than its tables, and 64 tokens are before it."""
    attention, x = attending(name), torch.randn(2, 150, DIM)
    whole = attention(x)
    for prefix in (1, 64, 65, 149):
        assert_same(attention(x[:, :prefix]), whole[:, :prefix])


@pytest.mark.parametrize("name", ["disentangled", "shaw", "transformer_xl"])
def test_places_need_no_order(name: str) -> None:
    """Tokens that take their positions with them give the same, wherever they stand in the row."""
    attention, x = attending(name, "global"), torch.randn(2, 9, DIM)
    positions, order = row(40, 3, 4, 5, 17, 8, 0, 1, 2), torch.randperm(9)
    moved = attention(x[:, order], positions=positions[:, order])
    assert_same(moved, attention(x, positions=positions)[:, order])


@every_pair
def test_bfloat16_stays_near_float32(name: str, role: Role) -> None:
    """The output by four of bfloat16's roundings: the encodings add terms to be rounded."""
    with default_dtype("float32"):
        draws = [bfloat16_errors(Case("multi_head", role, name)) for _ in range(3)]
    errors = torch.tensor(draws).median(dim=0).values
    assert errors[0] < 4 * 2**-8
    assert (errors[1:] < 6e-2).all()


@pytest.mark.parametrize("name", ["disentangled", "shaw", "transformer_xl"])
def test_no_vector_is_made_for_every_pair(name: str) -> None:
    """[b h q k] is the largest: neither keys nor values [q k c] of their own for every query."""
    length = 300
    attention = create_attention("multi_head", dim=64, heads=2, role="global", position=name)
    x = torch.randn(1, length, 64, requires_grad=True)
    assert measure_memory(lambda: attention(x)).largest <= 8 * 2 * length**2


# Shaw


def test_shaw_gives_to_values_too() -> None:
    """A token that is alone gets its value, and the vector of distance 0."""
    attention = attending("shaw", clip=5)
    x = torch.randn(2, 1, DIM)
    value = attention.values(x) + attention.encoding.value_table[5]
    assert_same(attention(x), attention.project_output(value, x))


def test_distances_share_a_row_beyond_the_clip_only() -> None:
    shaw = built("shaw", "global", clip=3)
    q = heads(1)
    scores = read(shaw, q, heads(9), row(10), row(0, 6, 7, 8, 10, 12, 13, 14, 99))[0, 0, 0]
    assert (scores[:3] == scores[0]).all() and (scores[6:] == scores[6]).all()
    assert len(scores.unique()) == 5


def test_shaw_sums_weights_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a sum of numbers of 2⁻¹² stops at 2⁻⁴ in bfloat16. The CPU is wide by itself, so
    that the type of the sums is asked for.
    """
    add, types = Tensor.scatter_add, []

    def noting(sums: Tensor, *rest: Any) -> Tensor:
        types.append(sums.dtype)
        return add(sums, *rest)

    monkeypatch.setattr(Tensor, "scatter_add", noting)
    with default_dtype("float32"):
        shaw = built("shaw", clip=2).bfloat16()
        weights = torch.full((1, HEADS, 1, 4096), 2.0**-12, dtype=torch.bfloat16)
        given = shaw.value_bias(weights, row(5000), torch.arange(4096)[None])
    assert types == [torch.float32] and given.dtype == torch.bfloat16
    assert torch.equal(given, shaw.value_table[0].expand_as(given))


def test_shaw_has_no_rows_that_a_causal_query_cannot_use() -> None:
    assert len(built("shaw", clip=7).key_table) == 8
    assert len(built("shaw", "global", clip=7).key_table) == 15


# Transformer-XL


def test_u_meets_contents_and_v_meets_positions() -> None:
    xl = built("transformer_xl")
    q, k, positions = torch.zeros(1, HEADS, 3, WIDTH), heads(5)[:1], row(0, 2, 3, 7, 8)
    zeroed(xl.query_position_bias)
    by_content = read(xl, q, k, row(4, 9, 1), positions)
    product = 0.5 * torch.einsum("h c, b h k c -> b h k", xl.query_content_bias, k)
    assert_same(by_content, product[:, :, None].expand_as(by_content))
    torch.nn.init.normal_(xl.query_position_bias)
    zeroed(xl.query_content_bias)
    by_place = read(xl, q, k, row(4, 9, 1), positions)
    assert_same(read(xl, q, heads(5)[:1], row(4, 9, 1), positions), by_place)
    assert not torch.allclose(by_place, by_place.roll(1, dims=2))


def test_transformer_xl_tells_before_from_behind() -> None:
    """Sinusoids of t − s, of which those of s − t are the mirror, are not those of |t − s|."""
    xl, q = built("transformer_xl", "global"), heads(1)
    zeroed(xl.query_content_bias)
    scores = read(xl, q, heads(2), row(5), row(3, 7))
    mirrored = read(xl, q, heads(2), row(5), row(7, 3))
    assert_same(mirrored, scores.flip(-1))
    assert not torch.allclose(scores, mirrored)


def test_transformer_xl_angles_are_not_rounded_to_bfloat16() -> None:
    """In bfloat16 position 257 is 256 and 4097 is 4096."""
    with default_dtype("float32"):
        xl = built("transformer_xl")
        positions = row(256, 257, 4096, 4097)
        q, k = heads(4), heads(4)
        expected = read(xl, q, k, positions, positions)
        found = read(xl.bfloat16(), q.bfloat16(), k.bfloat16(), positions, positions)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 2e-2 * expected.norm()


# Disentangled


@pytest.mark.parametrize("terms", ["contents", "place of the key", "place of the query"])
def test_each_of_three_terms_is_divided_by_the_root_of_three_widths(terms: str) -> None:
    attention = attending("disentangled")
    encoding, x = attention.encoding, torch.randn(2, 7, DIM)
    q = attention.project_query(x)
    k, _ = attention.project_key_value(x)
    rows = encoding.table.new_ones(2 * encoding.clip, DIM)
    encoding.table.data.copy_(rows)  # The same for all distances.
    kept = {"place of the key": encoding.key, "place of the query": encoding.query}
    for name, projection in kept.items():
        if name != terms:
            zeroed(projection.weight)
    scores = q @ k.transpose(-2, -1)
    if terms != "contents":
        place = kept[terms](rows[:1]).view(HEADS, 1, WIDTH)
        one = q @ place.transpose(-2, -1)
        scores = scores + (
            one if terms == "place of the key" else (k @ place.transpose(-2, -1)).transpose(-2, -1)
        )
    scores = scores / math.sqrt(3 * WIDTH)
    future = torch.ones(7, 7, dtype=torch.bool).triu(1)
    expected = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
    assert_same(attention.attention_map(x), expected)


@pytest.mark.parametrize(
    ("other", "distances"), [("query", (1, 0, -1)), ("key", (-1, 0, 1))], ids=["queries", "keys"]
)
def test_keys_meet_the_distance_with_the_other_sign(other: str, distances: list[int]) -> None:
    """δ(s, t) for k_s, where transformers has δ(t, s), as for q_t."""
    encoding = built("disentangled", "global", clip=2)
    zeroed(encoding.table, getattr(encoding, other).weight)
    with torch.no_grad():
        encoding.table[encoding.row(torch.tensor(1))] = 1.0
    scores = read(encoding, heads(1), heads(3), row(5), row(4, 5, 6))
    assert (scores != 0)[0, 0, 0].tolist() == [distance == 1 for distance in distances]


def test_clipped_distances_of_disentangled_attention() -> None:
    """2k rows: from −k, which all before it share, to k − 1, which all behind it share."""
    encoding = built("disentangled", clip=3)
    distances = torch.tensor([-99, -4, -3, -2, 0, 1, 2, 3, 99])
    assert encoding.row(distances).tolist() == [0, 0, 0, 1, 3, 4, 5, 5, 5]


def test_cached_keys_are_whole() -> None:
    """√3 is in the queries alone, however often keys are read."""
    attention, x = attending("disentangled"), torch.randn(2, 5, DIM)
    cache = attention.new_cache()
    attention(x, cache=cache)
    assert_same(cache.tokens["keys"], attention.project_key_value(x)[0])


# Contextual


def counts(q: Tensor, k: Tensor, visible: Tensor | None, last: int = 64) -> Tensor:
    """Positions [b h q k], as gates of these heads count them."""
    gates = torch.sigmoid(q @ k.transpose(-2, -1) * 0.5)
    return built("contextual", max_position=last).count_positions(gates, visible)


def test_what_a_query_does_not_see_has_no_gate() -> None:
    """σ(0) = 1/2 of a masked score would count; and so would σ of what stands there."""
    q, k = heads(1), heads(5)
    visible = torch.tensor([True, False, True, True, False]).view(1, 1, 1, 5)
    found = counts(q, k, visible)
    alone = counts(q, k[:, :, [0, 2, 3]], None)
    assert_same(found[..., [0, 2, 3]], alone)
    assert_same(found[..., [1, 4]], torch.cat([alone[..., 1:2], torch.zeros(2, HEADS, 1, 1)], -1))


def test_a_key_counts_itself() -> None:
    """p_tt is the gate of t; p_ts that of s and of all behind it: none before it."""
    q, k = heads(1), heads(3)
    gates = torch.sigmoid(q @ k.transpose(-2, -1) * 0.5)
    expected = [gates.sum(-1), gates[..., 1:].sum(-1), gates[..., 2]]
    assert_same(counts(q, k, None), torch.stack(expected, dim=-1))


def test_gates_are_of_scaled_scores_and_the_bias_is_not_scaled() -> None:
    encoding, q, k = built("contextual"), heads(1), heads(1)
    place = row(0)
    gate = torch.sigmoid((q * k).sum(-1, keepdim=True) * 0.5)
    between = (1 - gate) * encoding.table[0] + gate * encoding.table[1]
    assert_same(read(encoding, q, k, place, place), (q * between).sum(-1, keepdim=True))


def test_positions_end_at_the_last_row() -> None:
    q = 10.0 * torch.ones(1, 1, 1, WIDTH)
    found = counts(q, torch.ones(1, 1, 9, WIDTH), None, last=4)[0, 0, 0]
    torch.testing.assert_close(found, torch.tensor([4.0] * 6 + [3.0, 2.0, 1.0]))


def test_many_gates_are_summed_in_float32() -> None:
    """In bfloat16 a sum of halves stops at 256."""
    gates = torch.full((1, 1, 1, 3000), 0.5, dtype=torch.bfloat16)
    with default_dtype("float32"):
        found = built("contextual", max_position=4000).count_positions(gates, None)
    assert torch.equal(found[0, 0, 0], torch.arange(3000, 0, -1).float() / 2)


def test_contextual_positions_count_within_a_window() -> None:
    """In blocks with slices of the keys as over the whole row."""
    window = create_attention("sliding_window", dim=DIM, heads=HEADS, role="causal", window=5)
    window.attach_position(built("contextual"))
    plain = create_attention("multi_head", dim=DIM, heads=HEADS, role="causal")
    plain.attach_position(built("contextual"))
    plain.load_state_dict(window.state_dict())
    x = torch.randn(2, 150, DIM)
    assert_same(window(x), plain(x, mask=Mask(window=5)))


def test_gates_learn_once_embeddings_differ() -> None:
    """They start alike, at zero: at first only they have a gradient."""
    attention = create_attention("multi_head", dim=DIM, heads=HEADS, role="causal")
    attention.attach_position(
        create_position("contextual", dim=DIM, heads=HEADS, head_dim=WIDTH, role="causal")
    )
    plain = create_attention("multi_head", dim=DIM, heads=HEADS, role="causal")
    plain.load_state_dict(attention.state_dict(), strict=False)
    x = torch.randn(2, 9, DIM)
    assert_same(attention(x), plain(x))
    attention(x).sin().sum().backward()
    assert attention.encoding.table.grad.ne(0).any()
