"""Encodings that read queries and keys, against their papers' formulas, in plain loops."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_zoo import UserError, create_position
from attention_zoo.position.base import PositionalEncoding, ScoreInputs
from attention_zoo.zoo import Role
from tests.conformance.numbers import assert_same

HEADS, WIDTH, DIM = 2, 6, 8
SCALE = WIDTH**-0.5
# Neither sorted nor contiguous, and others in each row.
ASKING = torch.tensor([[0, 1, 2, 7, 301], [4, 4, 0, 1, 50]])
ASKED = torch.tensor([[2, 0, 9, 300], [3, 5, 2, 4]])
SELF_ROLES: tuple[Role, ...] = ("causal", "global")


def encoding(name: str, role: Role = "global", **options: Any) -> PositionalEncoding:
    """With parameters away from where they start."""
    made = create_position(name, dim=DIM, heads=HEADS, head_dim=WIDTH, role=role, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter))
    return made


def heads(length: int) -> Tensor:
    return torch.randn(2, HEADS, length, WIDTH)


def pairs(q: Tensor, k: Tensor) -> list[tuple[int, ...]]:
    """Every row, head, query and key."""
    return list(product(*map(range, (*q.shape[:3], k.shape[2]))))


def read(
    encoding: PositionalEncoding, q: Tensor, k: Tensor, visible: Tensor | None = None
) -> Tensor:
    found = encoding.content_bias(ScoreInputs(q, k, ASKING, ASKED, visible, SCALE, {}))
    assert found is not None and found.shape == (*q.shape[:3], k.shape[2])
    return found


def own(projection: torch.nn.Linear, head: int) -> Tensor:
    """The rows of a projection's matrix that make a head."""
    return projection.weight[head * WIDTH : (head + 1) * WIDTH]


@pytest.mark.parametrize("role", SELF_ROLES)
def test_shaw_adds_a_row_to_keys_and_to_values(role: Role) -> None:
    """Shaw et al. 2018, eqs. 3 and 4, where i is the query and j the key: a_{clip(j − i, k)}."""
    shaw = encoding("shaw", role, clip=3)
    q, k, weights = heads(5), heads(4), torch.rand(2, HEADS, 5, 4)
    scores, given = torch.zeros(2, HEADS, 5, 4), torch.zeros(2, HEADS, 5, WIDTH)
    for b, h, i, j in pairs(q, k):
        distance = int(ASKED[b, j]) - int(ASKING[b, i])
        row = max(-3, min(0 if role == "causal" else 3, distance)) + 3
        scores[b, h, i, j] = q[b, h, i].dot(shaw.key_table[row]) / math.sqrt(WIDTH)
        given[b, h, i] += weights[b, h, i, j] * shaw.value_table[row]
    assert len(shaw.key_table) == len(shaw.value_table) == (4 if role == "causal" else 7)
    assert_same(read(shaw, q, k), scores)
    assert_same(shaw.value_bias(weights, ASKING, ASKED), given)


@pytest.mark.parametrize("role", SELF_ROLES)
def test_transformer_xl_has_the_four_terms_of_the_paper(role: Role) -> None:
    """Dai et al. 2019, §3.3, the first of which is attention's own."""
    xl = encoding("transformer_xl", role, base=50.0)
    q, k = heads(5), heads(4)
    expected = torch.zeros(2, HEADS, 5, 4)
    for b, h, i, j in pairs(q, k):
        distance = int(ASKING[b, i]) - int(ASKED[b, j])
        wave = [
            trigonometric(distance / 50.0 ** (2 * n / DIM))
            for n in range(DIM // 2)
            for trigonometric in (math.sin, math.cos)
        ]
        place = own(xl.distance, h) @ torch.tensor(wave)
        terms = (
            q[b, h, i].dot(place)
            + xl.query_content_bias[h].dot(k[b, h, j])
            + xl.query_position_bias[h].dot(place)
        )
        expected[b, h, i, j] = terms / math.sqrt(WIDTH)
    assert_same(read(xl, q, k), expected)


def distance_row(i: int, j: int, k: int) -> int:
    """δ(i, j) of He et al. 2020."""
    if i - j <= -k:
        return 0
    if i - j >= k:
        return 2 * k - 1
    return i - j + k


@pytest.mark.parametrize("role", SELF_ROLES)
def test_disentangled_has_the_three_terms_of_the_paper(role: Role) -> None:
    """He et al. 2020, §3.1: all of it over √(3c)."""
    deberta = encoding("disentangled", role, clip=3)
    q, k = heads(5), heads(4)
    positions = torch.zeros(2, 1, dtype=torch.long)
    turned, _ = deberta.rotate(q, q, positions)
    _, kept = deberta.rotate(k, k, positions)
    ours = turned @ kept.transpose(-2, -1) * SCALE + read(deberta, turned, kept)
    expected = torch.zeros(2, HEADS, 5, 4)
    for b, h, i, j in pairs(q, k):
        asking, asked = int(ASKING[b, i]), int(ASKED[b, j])
        place_key = own(deberta.key, h) @ deberta.table[distance_row(asking, asked, 3)]
        place_query = own(deberta.query, h) @ deberta.table[distance_row(asked, asking, 3)]
        total = q[b, h, i].dot(k[b, h, j]) + q[b, h, i].dot(place_key) + k[b, h, j].dot(place_query)
        expected[b, h, i, j] = total / math.sqrt(3 * WIDTH)
    assert_same(ours, expected)


@pytest.mark.parametrize("last", [1, 2, 64])
def test_contextual_counts_by_gates(last: int) -> None:
    """Golovneva et al. 2024: positions are sums of gates, and embeddings between them mixed."""
    cope = encoding("contextual", "causal", max_position=last)
    q, k = 3.0 * heads(5), heads(6)
    # The queries are the last of the keys; some keys are hidden besides, and from one query all.
    visible = (torch.rand(2, 1, 5, 6) < 0.8).tril(1)
    visible[0, 0, 2] = False
    expected = torch.zeros(2, HEADS, 5, 6)
    for b, h, i, j in pairs(q, k):
        position = 0.0
        for other in range(j, 6):
            if visible[b, 0, i, other]:
                position += 1 / (1 + math.exp(-float(q[b, h, i].dot(k[b, h, other])) * SCALE))
        position = min(position, last)
        below, above = math.floor(position), math.ceil(position)
        mixed = (position - below) * cope.table[above] + (1 - position + below) * cope.table[below]
        expected[b, h, i, j] = q[b, h, i].dot(mixed)
    assert_same(read(cope, q, k, visible), expected)


@pytest.mark.parametrize("inner", ["alibi", "fire", "kerple", "sandwich", "t5_bias"])
def test_dape_corrects_a_bias_by_the_scores_of_all_heads(inner: str) -> None:
    """Zheng et al. 2024: S + B + f(S, B), f two layers with a LeakyReLU between, head by head."""
    dape = encoding("dape", encoding=inner, hidden=3)
    q, k = heads(5), heads(4)
    found = read(dape, q, k)
    bias = dape.inner.score_bias(ASKING, ASKED).expand(2, -1, -1, -1)
    for row, i, j in product(range(2), range(5), range(4)):
        scores = [float(q[row, h, i] @ k[row, h, j]) * SCALE for h in range(HEADS)]
        inputs = [*scores, *bias[row, :, i, j].tolist()]
        hidden = []
        for unit in range(3):
            weights = zip(dape.expand.weight[unit].tolist(), inputs, strict=True)
            raw = dape.expand.bias.tolist()[unit] + sum(w * x for w, x in weights)
            hidden.append(raw if raw > 0 else 0.01 * raw)
        for h in range(HEADS):
            weights = zip(dape.contract.weight[h].tolist(), hidden, strict=True)
            expected = bias[row, h, i, j] + sum(w * x for w, x in weights)
            assert_same(found[row, h, i, j], expected)


@pytest.mark.parametrize("role", SELF_ROLES)
def test_grape_additive_scales_a_distance_by_query_and_key(role: Role) -> None:
    """Zhang et al. 2025, as the authors' code says it, with the slopes 2⁻⁴ and 2⁻⁸ of two heads."""
    grape, q, k = encoding("grape_additive", role), heads(5), heads(4)
    found = read(grape, q, k)
    for row, head, i, j in pairs(q, k):
        gates = 0.0
        for x, u in (
            (q[row, head, i], grape.query_direction),
            (k[row, head, j], grape.key_direction),
        ):
            product = (x @ u[head] / u[head].norm() * SCALE).item()
            gates += math.log1p(math.exp(product))
        rate = math.log1p(math.exp(grape.raw_rate[head].item())) * 2.0 ** (-4 * (head + 1))
        distance = abs(int(ASKING[row, i] - ASKED[row, j]))
        assert found[row, head, i, j].item() == pytest.approx(-distance * rate * gates)


@pytest.mark.parametrize(
    ("name", "role", "option"),
    [
        ("shaw", "causal", "clip"),
        ("disentangled", "global", "clip"),
        ("contextual", "causal", "max_position"),
        ("dape", "causal", "hidden"),
    ],
)
def test_a_table_without_distances_is_refused(name: str, role: Role, option: str) -> None:
    with pytest.raises(UserError, match=f"{option} must be at least 1, got 0"):
        encoding(name, role, **{option: 0})


def test_transformer_xl_refuses_an_odd_width() -> None:
    with pytest.raises(UserError, match="position=transformer_xl needs an even dim, got 7"):
        create_position("transformer_xl", dim=7, heads=1, head_dim=7, role="causal")
