"""Traps of data-adaptive positional encoding."""

import pytest
import torch

from attention_zoo import Unsupported, create_attention
from attention_zoo.position.base import ScoreInputs
from attention_zoo.precision import upcast
from tests.conformance.numbers import assert_same, default_dtype
from tests.traps.test_position_content import DIM, HEADS, WIDTH, attending, built, heads, read

POSITIONS = torch.arange(7)[None]


def test_an_mlp_of_nothing_leaves_the_bias() -> None:
    dape = built("dape", encoding="alibi")
    torch.nn.init.zeros_(dape.contract.weight)
    found = read(dape, heads(7), heads(7), POSITIONS, POSITIONS)
    expected = dape.inner.score_bias(POSITIONS, POSITIONS)
    assert_same(found, expected.expand_as(found))


def test_a_head_sees_the_scores_of_the_others() -> None:
    """And each pair of a query and a key only itself."""
    dape, q, k = built("dape"), heads(7), heads(7)
    before = read(dape, q, k, POSITIONS, POSITIONS)
    q[:, 1, 3] += 1.0
    after = read(dape, q, k, POSITIONS, POSITIONS)
    changed = (after - before).abs() > 1e-12
    assert changed[:, :, 3].all()
    assert not changed[:, :, [0, 1, 2, 4, 5, 6]].any()


def test_scores_are_scaled_before_the_mlp() -> None:
    """By the attention's own scale, which a wide head needs."""
    dape, q, k = built("dape"), heads(7), heads(7)
    inputs = ScoreInputs(q, k, POSITIONS, POSITIONS, None, 0.25, {})
    doubled = ScoreInputs(q / 2, k, POSITIONS, POSITIONS, None, 0.5, {})
    assert_same(dape.content_bias(inputs), dape.content_bias(doubled))


def test_the_mlp_is_in_float32_under_autocast() -> None:
    """Of a bias like −300, the scores' part would vanish in bfloat16."""
    with default_dtype("float32"):
        dape = built("dape", encoding="alibi")
        q, k = heads(7).bfloat16(), heads(7).bfloat16()
        far = POSITIONS + 1000
        with torch.autocast("cpu", torch.bfloat16):
            found = read(dape, q, k, far, POSITIONS)
        products = upcast(q @ k.transpose(-2, -1) * 0.5)
        bias = dape.inner.score_bias(far, POSITIONS).expand_as(products)
        hidden = dape.expand(torch.cat([products, bias], dim=1).movedim(1, -1))
        expected = bias + dape.contract(torch.nn.functional.leaky_relu(hidden)).movedim(-1, 1)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_every_layer_has_an_mlp_and_a_bias_of_its_own() -> None:
    first, second = attending("dape"), attending("dape")
    assert first.position is not second.position
    assert not torch.equal(first.position.expand.weight, second.position.expand.weight)


@pytest.mark.parametrize("name", ["rotary", "shaw", "learned", "none", "randomized", "dape"])
def test_what_gives_no_bias_is_refused(name: str) -> None:
    with pytest.raises(Unsupported, match=f"by positions alone, got encoding={name}. Choices: al"):
        built("dape", encoding=name)


def test_a_bias_that_is_not_relative_makes_dape_so() -> None:
    assert built("dape", encoding="kerple").card.relative
    assert not built("dape", encoding="fire").card.relative
    attention = create_attention("multi_head", dim=DIM, heads=HEADS, role="causal", position="dape")
    assert attention.position.card.relative and attention.head_dim == WIDTH
