"""Of selective rotary positions."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_zoo import UserError, create_attention, create_position
from attention_zoo.attention.base import Attention
from attention_zoo.masks import Mask, Visibility
from tests.conformance.cases import moved
from tests.conformance.numbers import assert_same, default_dtype, values_and_gradients

DIM, HEADS = 16, 2


def attention(**options: Any) -> Attention:
    sizes: dict[str, Any] = {"dim": DIM, "heads": HEADS, "role": "causal"}
    return moved(create_attention("selective_rotary", **sizes | options))


class ConstantPhases(nn.Module):
    """Every token moves on by as much."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(*x.shape[:2], DIM // 2)


def test_constant_phases_are_rotary() -> None:
    """The direction, the pairs and the frequencies are those of rotary positions."""
    ours = attention(base=100.0)
    plain = create_attention("multi_head", dim=DIM, heads=HEADS, role="causal")
    plain.attach_position(create_position("rotary", **plain.position_sizes, base=100.0))
    plain.load_state_dict(ours.state_dict(), strict=False)
    ours.phase = ConstantPhases()
    with torch.no_grad():
        ours.phase_convolution.weight.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    x = torch.randn(2, 9, DIM)
    assert_same(ours(x), plain(x))


def test_only_tokens_after_the_key_turn_it() -> None:
    """What comes before a key, and its own phase, change none of its scores."""
    ours, x = attention(kernel_size=1), torch.randn(1, 9, DIM)
    scores = ours.attention_map(x).log()
    changed = x.clone()
    changed[:, :4] += torch.randn(1, 4, DIM)
    others = ours.attention_map(changed).log()
    # Of two keys, the difference of scores is left by the sum of all weights.
    assert_same(others[..., 8, 4:8].diff(dim=-1), scores[..., 8, 4:8].diff(dim=-1))
    changed = x.clone()
    changed[:, 6] += torch.randn(DIM)
    others = ours.attention_map(changed).log()
    difference = (others - scores)[..., 8, 4:6].diff(dim=-1)
    assert difference.abs().min() > 1e-6


def test_the_length_of_an_input_does_not_turn_further() -> None:
    ours, x = attention(), torch.randn(2, 9, DIM)
    phases = ours.extra_features(x)["phases"]
    torch.testing.assert_close(ours.extra_features(7.0 * x)["phases"], phases, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_heads_that_share_a_key_share_its_phases(kv_heads: int) -> None:
    ours, x = attention(heads=4, kv_heads=kv_heads), torch.randn(2, 7, DIM)
    visible, positions = torch.ones(2, 7, 7, dtype=torch.bool).tril(), torch.arange(7)[None]
    assert ours.phase_convolution.channels == kv_heads * 2
    assert_same(
        values_and_gradients(ours, ours, x),
        values_and_gradients(lambda x: ours.naive(x, x, visible, positions), ours, x),
    )


def test_sums_of_phases_are_in_float32() -> None:
    """In bfloat16 a sum of ones ends at 256."""
    with default_dtype("float32"):
        ours = attention(kernel_size=1).bfloat16()
        nn.init.ones_(ours.phase_convolution.weight)
        phases = torch.ones(1, 600, DIM // 2, dtype=torch.bfloat16)
        angles = ours.angles(phases, Visibility.of_last(Mask(causal=True), 600, 600, 600))
    assert angles.dtype == torch.float32
    assert angles[0, 0, -1, 0] == 600.0


def test_an_odd_head_is_refused() -> None:
    with pytest.raises(UserError, match="needs an even head width, got 5"):
        attention(head_dim=5)
