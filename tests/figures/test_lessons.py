"""Test what the pictures of the lessons claim, on the numbers that they draw."""

import math

import pytest
import torch

from attention_zoo import create_attention
from attention_zoo.errors import UserError
from attention_zoo.masks import Mask
from attention_zoo.tasks.views.attention_record import AttentionRecord
from attention_zoo.tasks.views.figures import (
    causality,
    encodings,
    heads,
    roles,
    scaling,
    soft_lookup,
    steps,
    word_order,
)


def test_the_look_up_mixes_all_values_and_returns_one_at_a_low_temperature() -> None:
    assert soft_lookup.value_weights(1.0) == pytest.approx([0.33, 0.14, 0.53], abs=0.005)
    assert soft_lookup.value_weights(1e-3) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("new_weights", [False, True])
def test_the_last_step_is_the_output_of_attention(new_weights: bool) -> None:
    attention = steps.create_identity_attention(3)
    if new_weights:
        attention = create_attention("single_head", dim=3, role="global")
        with torch.no_grad():
            attention.output.weight.copy_(torch.eye(3))
    computed = steps.compute_steps(attention, steps.VECTORS)
    with torch.no_grad():
        torch.testing.assert_close(computed.output, attention(steps.VECTORS[None])[0])
        weights = attention.attention_map(steps.VECTORS[None])[0, 0]
    torch.testing.assert_close(computed.weights, weights)
    torch.testing.assert_close(computed.scaled_scores * math.sqrt(3), computed.scores)
    torch.testing.assert_close(computed.unnormalised_output, computed.scores @ computed.values)


def test_scaled_scores_keep_their_gradient_and_others_lose_it() -> None:
    by_width = {width: scaling.sample_scores(width, 200) for width in (4, 64, 1024)}
    for width, scores in by_width.items():
        assert scores.std().item() == pytest.approx(math.sqrt(width), rel=0.1)
        scaled = scores / math.sqrt(width)
        assert scaling.jacobian_norm(scaled) == pytest.approx(0.3, abs=0.02)
        assert scaling.largest_weight(scaled) == pytest.approx(0.24, abs=0.03)
    gradients = [scaling.jacobian_norm(scores) for scores in by_width.values()]
    assert gradients == sorted(gradients, reverse=True) and gradients[-1] < 0.07
    assert scaling.largest_weight(by_width[1024]) > 0.9


def test_the_gradient_is_that_of_softmax() -> None:
    scores = torch.randn(1, 5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: x.softmax(-1), scores[0])
    assert scaling.jacobian_norm(scores) == pytest.approx(jacobian.norm().item())


@pytest.mark.parametrize("role", ["cross", "global", "causal"])
def test_role_masks_are_where_attention_has_weights(role: str) -> None:
    keys = 4 if role == "cross" else 5
    attention = create_attention("multi_head", dim=8, heads=2, role=role)
    context = [torch.randn(1, keys, 8)] if role == "cross" else []
    weights = attention.attention_map(torch.randn(1, 5, 8), *context, mask=Mask())
    assert torch.equal(roles.role_mask(role, 5, keys), weights[0, 0] > 0)


def test_a_word_changes_no_output_before_it() -> None:
    causal, full = (causality.output_changes(role, 7) for role in ("causal", "global"))
    before = torch.ones(7, 7).tril(-1).bool()  # the output is before the replaced word
    assert (causal[before] == 0).all() and (causal[~before] > 0.01).all()
    assert (full > 0.01).all()


def test_products_of_positions_depend_on_their_distance() -> None:
    for name, options in (("sinusoidal", {}), ("rotary", {"layout": "interleaved"})):
        means, deviations = encodings.products_by_distance(
            encodings.position_vectors(name, **options)
        )
        assert deviations.max() < 1e-4 * means[0]
        assert means[0] > means[4] > means[40]
    rotary = encodings.position_vectors("rotary", layout="half_split")
    torch.testing.assert_close(rotary.norm(dim=-1), torch.ones(encodings.LENGTH))
    learned = encodings.position_vectors("learned", max_length=encodings.LENGTH)
    means, _ = encodings.products_by_distance(learned / learned.norm(dim=-1, keepdim=True))
    assert means[1:40].abs().max() < 0.1


def test_the_bias_of_alibi_is_a_slope_by_head() -> None:
    bias = encodings.alibi_bias()
    assert bias[0, 0, :4].tolist() == [0.0, -0.5, -1.0, -1.5]
    assert bias[-1, 0, 2].item() == -2 / 256


def test_without_positions_another_order_gives_the_same_vectors() -> None:
    one, other = word_order.attention_outputs(None, word_order.SENTENCE, word_order.REORDERED)
    torch.testing.assert_close(one, other.flip(0))
    assert set(word_order.output_differences(None).values()) == {0.0}
    assert min(word_order.output_differences("rotary").values()) > 0.05


def test_joined_heads_are_the_output_of_attention() -> None:
    attention, x = heads.create_example()
    computed = heads.compute_multi_head(attention, x)
    with torch.no_grad():
        torch.testing.assert_close(computed.output, attention(x[None])[0])
        torch.testing.assert_close(computed.queries, attention.query(x))
    assert computed.head_outputs.shape == (heads.HEADS, heads.TOKENS, heads.DIM // heads.HEADS)
    torch.testing.assert_close(computed.concatenated[:, 4:8], computed.head_outputs[1])


def test_the_two_heads_that_differ_most_are_found() -> None:
    layers = [torch.full((3, 4, 4), 0.25) for _ in range(2)]
    layers[1][2] = torch.eye(4)
    assert heads.find_most_different_heads(layers) in ((1, 0, 2), (1, 1, 2))


def test_a_single_head_cannot_be_compared() -> None:
    class SingleHeadTask:
        def attend(self, line: str) -> AttentionRecord:
            return AttentionRecord(["a"], ["b"], {"encoder": [torch.ones(1, 1, 1)]})

    with pytest.raises(UserError, match="no layer of this encoder has two"):
        heads.draw_two_heads(SingleHeadTask(), "a")


def test_the_random_state_does_not_change() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    causality.output_changes("causal", 3)
    word_order.output_differences("rotary")
    encodings.position_vectors("learned", max_length=encodings.LENGTH)
    assert torch.equal(torch.rand(3), expected)
