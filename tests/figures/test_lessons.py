"""What the lessons' pictures claim is true of the numbers behind them."""

import math

import pytest
import torch

from attention_zoo import create_attention
from attention_zoo.errors import UserError
from attention_zoo.masks import Mask
from attention_zoo.tasks.views.attention_record import AttentionRecord
from attention_zoo.tasks.views.figures import (
    causality,
    dictionary,
    encodings,
    heads,
    order,
    roles,
    scaling,
    steps,
)


def test_the_dictionary_answers_with_all_values_and_cold_with_one() -> None:
    assert dictionary.weights_of_values(1.0) == pytest.approx([0.33, 0.14, 0.53], abs=0.005)
    assert dictionary.weights_of_values(1e-3) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("own_weights", [False, True])
def test_the_last_step_is_what_attention_gives(own_weights: bool) -> None:
    attention = steps.identity_attention(3)
    if own_weights:
        attention = create_attention("single_head", dim=3, role="global")
        with torch.no_grad():
            attention.output.weight.copy_(torch.eye(3))
    computed = steps.compute_steps(attention, steps.VECTORS)
    with torch.no_grad():
        torch.testing.assert_close(computed.output, attention(steps.VECTORS[None])[0])
        weights = attention.attention_map(steps.VECTORS[None])[0, 0]
    torch.testing.assert_close(computed.weights, weights)
    torch.testing.assert_close(computed.scaled * math.sqrt(3), computed.scores)
    torch.testing.assert_close(computed.plain, computed.scores @ computed.values)


def test_scaled_scores_stay_and_others_lose_their_gradient() -> None:
    drawn = {width: scaling.draw_scores(width, 200) for width in (4, 64, 1024)}
    for width, scores in drawn.items():
        assert scores.std().item() == pytest.approx(math.sqrt(width), rel=0.1)
        scaled = scores / math.sqrt(width)
        assert scaling.gradient_norm(scaled) == pytest.approx(0.3, abs=0.02)
        assert scaling.largest_weight(scaled) == pytest.approx(0.24, abs=0.03)
    gradients = [scaling.gradient_norm(scores) for scores in drawn.values()]
    assert gradients == sorted(gradients, reverse=True) and gradients[-1] < 0.07
    assert scaling.largest_weight(drawn[1024]) > 0.9


def test_the_gradient_is_that_of_softmax() -> None:
    scores = torch.randn(1, 5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: x.softmax(-1), scores[0])
    assert scaling.gradient_norm(scores) == pytest.approx(jacobian.norm().item())


@pytest.mark.parametrize("role", ["cross", "global", "causal"])
def test_who_sees_whom_is_where_attention_has_weights(role: str) -> None:
    keys = 4 if role == "cross" else 5
    attention = create_attention("multi_head", dim=8, heads=2, role=role)
    context = [torch.randn(1, keys, 8)] if role == "cross" else []
    weights = attention.attention_map(torch.randn(1, 5, 8), *context, mask=Mask())
    assert torch.equal(roles.who_sees(role, 5, keys), weights[0, 0] > 0)


def test_later_words_change_nothing_before_them() -> None:
    causal, whole = (causality.changes(role, 7) for role in ("causal", "global"))
    before = torch.ones(7, 7).tril(-1).bool()  # the output stands before the word replaced
    assert (causal[before] == 0).all() and (causal[~before] > 0.01).all()
    assert (whole > 0.01).all()


def test_products_of_places_depend_on_their_distance() -> None:
    for name, options in (("sinusoidal", {}), ("rotary", {"layout": "interleaved"})):
        means, deviations = encodings.over_distance(encodings.vectors(name, **options))
        assert deviations.max() < 1e-4 * means[0]
        assert means[0] > means[4] > means[40]
    rotary = encodings.vectors("rotary", layout="half_split")
    torch.testing.assert_close(rotary.norm(dim=-1), torch.ones(encodings.PLACES))
    learned = encodings.vectors("learned", max_length=encodings.PLACES)
    means, _ = encodings.over_distance(learned / learned.norm(dim=-1, keepdim=True))
    assert means[1:40].abs().max() < 0.1


def test_the_bias_of_alibi_is_a_slope_by_head() -> None:
    bias = encodings.alibi_bias()
    assert bias[0, 0, :4].tolist() == [0.0, -0.5, -1.0, -1.5]
    assert bias[-1, 0, 2].item() == -2 / 256


def test_without_positions_another_order_gives_the_same_vectors() -> None:
    one, other = order.outputs(None, order.ONE, order.OTHER)
    torch.testing.assert_close(one, other.flip(0))
    assert set(order.differences(None).values()) == {0.0}
    assert min(order.differences("rotary").values()) > 0.05


def test_joined_heads_are_what_attention_gives() -> None:
    attention, x = heads.new_example()
    parts = heads.compute_parts(attention, x)
    with torch.no_grad():
        torch.testing.assert_close(parts.output, attention(x[None])[0])
        torch.testing.assert_close(parts.queries, attention.query(x))
    assert parts.sums.shape == (heads.HEADS, heads.TOKENS, heads.DIM // heads.HEADS)
    torch.testing.assert_close(parts.joined[:, 4:8], parts.sums[1])


def test_the_two_heads_that_differ_most_are_shown() -> None:
    layers = [torch.full((3, 4, 4), 0.25) for _ in range(2)]
    layers[1][2] = torch.eye(4)
    assert heads.most_different(layers) in ((1, 0, 2), (1, 1, 2))


def test_one_head_cannot_be_shown_beside_another() -> None:
    class Single:
        def attend(self, line: str) -> AttentionRecord:
            return AttentionRecord(["a"], ["b"], {"encoder": [torch.ones(1, 1, 1)]})

    with pytest.raises(UserError, match="no layer of this encoder has two"):
        heads.two_heads(Single(), "a")


def test_chance_is_left_as_it_was() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    causality.changes("causal", 3)
    order.differences("rotary")
    encodings.vectors("learned", max_length=encodings.PLACES)
    assert torch.equal(torch.rand(3), expected)
