"""Biases by distance, by content, by drawn positions: each against its formula, in plain loops."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from attention_zoo.position.base import ScoreInputs
from attention_zoo.zoo import Role
from tests.conformance.cases import DIM, moved
from tests.conformance.numbers import assert_same
from tests.library.test_positions import encoding

HEADS = 4
QUERIES = torch.tensor([[0, 1, 2, 7, 301], [4, 4, 0, 1, 50]])
KEYS = torch.tensor([[0, 1, 9], [3, 5, 2]])
ROLES: tuple[Role, ...] = ("causal", "global")


def cells(bias: Tensor | None, heads: int = HEADS) -> list[tuple[float, int, int, int]]:
    """Each entry of a bias of QUERIES and KEYS, with its head and the positions."""
    assert bias is not None and bias.shape == (2, heads, 5, 3)
    return [
        (bias[b, h, i, j].item(), h, int(QUERIES[b, i]), int(KEYS[b, j]))
        for b, h, i, j in product(range(2), range(heads), range(5), range(3))
    ]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kernel", ["log", "power"])
def test_kerple_subtracts_its_kernel(kernel: str, role: Role) -> None:
    """−r₁ log(1 + r₂|t − s|), or −r₁|t − s|^r₂, with softplus, and 2σ for the power."""
    kerple = encoding("kerple", kernel=kernel, role=role)
    for value, head, query, key in cells(kerple.score_bias(QUERIES, KEYS)):
        first = math.log(1 + math.exp(kerple.raw_first[head].item()))
        raw, distance = kerple.raw_second[head].item(), abs(query - key)
        if kernel == "log":
            expected = -first * math.log(1 + math.log(1 + math.exp(raw)) * distance)
        else:
            expected = -first * distance ** (2 / (1 + math.exp(-raw)))
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize(("kernel", "most"), [("log", (2, 1)), ("power", (1, 2))])
def test_kerple_starts_where_the_authors_do(kernel: str, most: tuple[float, float]) -> None:
    """Uniformly between 0 and 1 or 2, and 0.01 at least."""
    kerple = encoding("kerple", kernel=kernel, heads=1000)
    for values, top in zip(kerple.coefficients(), most, strict=True):
        assert 0.01 - 1e-9 <= values.min() < 0.03 * top
        assert 0.97 * top < values.max() < top
        assert values.mean().item() == pytest.approx(top / 2, rel=0.1)


@pytest.mark.parametrize(("heads", "width", "base"), [(4, 128, 10000), (6, 6, 100.0), (1, 2, 10)])
@pytest.mark.parametrize("role", ROLES)
def test_sandwich_adds_the_product_of_sinusoids(
    role: Role, heads: int, width: int, base: float
) -> None:
    """(p_t·p_s − d̄/2)/(8n/h), with p the sines and cosines of Vaswani et al. 2017."""
    sandwich = encoding("sandwich", heads=heads, role=role, embedding_dim=width, base=base)
    for value, head, query, key in cells(sandwich.score_bias(QUERIES, KEYS), heads):
        total = 0.0
        for i in range(width // 2):
            t, s = (place / base ** (2 * i / width) for place in (query, key))
            total += math.sin(t) * math.sin(s) + math.cos(t) * math.cos(s)
        compression = (head + 1) * 8 / heads
        assert value == pytest.approx((total - width / 2) / compression, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("threshold", [3.0, 512.0])
@pytest.mark.parametrize("role", ROLES)
def test_fire_is_its_network_of_the_normalised_distance(role: Role, threshold: float) -> None:
    """f(ψ(t − s)/ψ(max(L, t))), ψ(x) = log(|cx| + 1), with all that is learned moved."""
    fire = encoding("fire", role=role, threshold=threshold)
    moved(fire, scale=0.2)
    c, limit = fire.log_scale.item(), abs(fire.threshold_factor.item() * threshold)
    for value, head, query, key in cells(fire.score_bias(QUERIES, KEYS)):
        last = query if role == "causal" else max(query, key)
        share = math.log(abs(c * (query - key)) + 1) / (math.log(abs(c * max(limit, last)) + 1))
        expected = 0.0
        for unit in range(32):
            before = fire.expand.weight[unit, 0] * share + fire.expand.bias[unit]
            expected += max(before.item(), 0.0) * fire.contract.weight[head, unit].item()
        # All but the 10⁻⁶ that the authors add to the normaliser.
        assert value == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_fire_starts_where_the_authors_do() -> None:
    """They train at 2,048 tokens."""
    fire = encoding("fire", original_length=2048)
    assert fire.log_scale.item() == 0.1
    assert fire.threshold_factor.item() * fire.threshold == 512.0
    assert fire.expand.weight.shape == (32, 1)


@torch.no_grad()
def test_dynamic_bias_sums_the_steps_behind_a_key() -> None:
    """Σ_{s < l ≤ t} −softplus(w_h·x_l + β_h), over what the query sees."""
    cable = encoding("dynamic_bias")
    moved(cable, scale=0.2)
    x = torch.randn(2, 7, DIM)
    visible = torch.ones(2, 1, 7, 7, dtype=torch.bool).tril()
    visible[1, :, :, 2:4] = False
    # The queries are the last three tokens, as in decoding with a cache.
    q, k, positions = (
        torch.randn(2, HEADS, 3, 6),
        torch.randn(2, HEADS, 7, 6),
        torch.arange(7)[None],
    )
    ours = cable.content_bias(
        ScoreInputs(
            q,
            k,
            positions[:, 4:],
            positions,
            visible[:, :, 4:],
            scale=1.0,
            features=cable.cached_features(x),
        )
    )
    assert ours is not None
    expected = torch.zeros(2, HEADS, 3, 7)
    for b, h, i, s in product(range(2), range(HEADS), range(3), range(7)):
        for between in range(s + 1, 4 + i + 1):
            if visible[b, 0, 4 + i, between]:
                step = cable.step.weight[h] @ x[b, between] + cable.step.bias[h]
                expected[b, h, i, s] -= math.log(1 + math.exp(step))
    assert_same(ours, expected)


def test_randomized_positions_embed_as_their_encoding_says() -> None:
    """E(x, i_t), with i the sorted draw that `map_positions` gives; all when evaluating."""
    positions = torch.tensor([[0, 1, 2, 3, 4], [0, 0, 1, 2, 2]])
    randomized = encoding("randomized", num_positions=100, max_length=25)
    x = torch.randn(2, 5, DIM)
    drawn = randomized.map_positions(positions)
    assert drawn.shape == positions.shape and (drawn[0].diff() > 0).all()
    assert torch.equal(drawn[1], drawn[0][positions[1]])
    assert_same(randomized.embed(x, drawn), encoding("sinusoidal").embed(x, drawn))
    assert torch.equal(randomized.eval().map_positions(positions), 4 * positions)


def test_draws_are_even_over_all_positions() -> None:
    """Of n of L positions, without replacement, the t-th has the mean t(L + 1)/(n + 1), from 1."""
    randomized = encoding("randomized", num_positions=30, max_length=10)
    draws = torch.cat([randomized.map_positions(torch.arange(5)[None]) for _ in range(3000)])
    means = draws.double().mean(dim=0)
    torch.testing.assert_close(means, torch.arange(1.0, 6) * 31 / 6 - 1, atol=0.5, rtol=0)
    assert draws.min() == 0 and draws.max() == 29


@pytest.mark.parametrize(
    ("heads", "chosen", "windowed"), [(4, None, 2), (5, None, 2), (1, None, 1), (3, 3, 3)]
)
def test_hard_alibi_hides_what_is_outside_of_the_heads_own_window(
    heads: int, chosen: int | None, windowed: int
) -> None:
    """Head i, counted from 1, sees i tokens, itself included; others see everything."""
    hard = encoding("hard_alibi", heads=heads, windowed_heads=chosen)
    queries, keys = torch.tensor([[6]]), torch.arange(7)[None]
    weights = hard.score_bias(queries, keys).softmax(dim=-1)[0, :, 0]
    for head, row in enumerate(weights.tolist()):
        seen = head + 1 if head < windowed else 7
        assert row == pytest.approx([0.0] * (7 - seen) + [1 / seen] * seen, abs=0.0)
