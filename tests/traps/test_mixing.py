"""Controls, which mix tokens without looking at them."""

import pytest
import torch

from attention_zoo import Unsupported, UserError, create_attention
from attention_zoo.masks import Mask
from tests.conformance.numbers import assert_same, default_dtype

DIM, HEADS = 16, 4


@pytest.mark.parametrize("role", ["causal", "cross"])
@pytest.mark.parametrize("name", ["fourier", "synthesizer"])
def test_controls_are_global_only(name: str, role: str) -> None:
    options = {} if name == "fourier" else {"heads": HEADS}
    with pytest.raises(Unsupported, match=f"{name} cannot be {role} attention"):
        create_attention(name, dim=DIM, role=role, **options)  # type: ignore[arg-type]


# Fourier.


@pytest.mark.parametrize("length", [1, 2, 7, 8, 65])
def test_fourier_is_the_transform_over_tokens_and_channels(length: int) -> None:
    """Over the two last axes, unnormalised, and its real part: not that of each transform."""
    x = torch.randn(2, length, DIM)
    attention = create_attention("fourier", dim=DIM, role="global")
    assert_same(attention(x), torch.fft.fftn(x.to(torch.complex128), dim=(1, 2)).real)


@pytest.mark.parametrize("side", ["left", "interior", "right"])
def test_fourier_transforms_the_real_tokens_of_a_row(side: str) -> None:
    """Padding would be part of the signal, even if it were zero."""
    attention = create_attention("fourier", dim=DIM, role="global")
    x, real = torch.randn(2, 12, DIM), torch.ones(2, 12, dtype=torch.bool)
    real[1, {"left": [0, 1, 2], "interior": [4, 5, 8], "right": [9, 10, 11]}[side]] = False
    together = attention(x, mask=Mask(key_mask=real))
    assert_same(together[0], attention(x[:1])[0])
    assert_same(together[1, real[1]], attention(x[1, real[1]][None])[0])
    assert (together[1, ~real[1]] == 0).all()


def test_fourier_has_no_parameters_and_asks_for_no_sizes() -> None:
    attention = create_attention("fourier", dim=15, role="global")
    assert list(attention.parameters()) == []
    with pytest.raises(UserError, match="has no option 'heads'"):
        create_attention("fourier", dim=15, heads=3, role="global")


def test_fourier_angles_of_long_rows_are_exact_in_float32() -> None:
    """Those of the last tokens go thousands of times around."""
    attention = create_attention("fourier", dim=DIM, role="global")
    with default_dtype("float32"):
        x, real = torch.randn(1, 2048, DIM), torch.ones(1, 2048, dtype=torch.bool)
        actual, expected = attention(x, mask=Mask(key_mask=real)), attention(x)
    assert (actual - expected).norm() < 1e-5 * expected.norm()


# Synthesizer.


def test_synthesizer_does_not_look_at_keys() -> None:
    attention = create_attention("synthesizer", dim=DIM, heads=HEADS, role="global")
    x = torch.randn(1, 6, DIM)
    other = torch.cat([x[:, :3], torch.randn(1, 3, DIM)], dim=1)
    assert_same(attention.attention_map(other)[:, :, :3], attention.attention_map(x)[:, :, :3])
    assert not hasattr(attention, "key")


def test_synthesizer_gives_positions_their_columns() -> None:
    attention = create_attention("synthesizer", dim=DIM, heads=HEADS, role="global", bias=True)
    with torch.no_grad():
        attention.position_bias.normal_()
    x, positions = torch.randn(1, 3, DIM), [5, 0, 900]
    hidden = attention.query(x).relu().view(3, HEADS, 4)
    scores = torch.empty(HEADS, 3, 3)
    for j, position in enumerate(positions):
        for head in range(HEADS):
            column = attention.position_vectors[position, head]
            scores[head, :, j] = hidden[:, head] @ column + attention.position_bias[position, head]
    actual = attention.attention_map(x, positions=torch.tensor([positions]))
    assert_same(actual[0], scores.softmax(dim=-1))


def test_synthesizer_of_a_padded_row_gives_what_its_tokens_give_alone() -> None:
    attention = create_attention("synthesizer", dim=DIM, heads=HEADS, role="global")
    x, real = torch.randn(2, 9, DIM), torch.ones(2, 9, dtype=torch.bool)
    real[1, :4] = False
    positions = (real.cumsum(dim=1) - 1).clamp(min=0)
    together = attention(x, mask=Mask(key_mask=real), positions=positions)
    assert_same(together[1, 4:], attention(x[1:, 4:])[0])


def test_synthesizer_refuses_longer_input() -> None:
    attention = create_attention("synthesizer", dim=DIM, heads=2, role="global", max_length=6)
    attention(torch.randn(1, 6, DIM))
    with pytest.raises(UserError, match="max_length=6, got 7 tokens"):
        attention(torch.randn(1, 7, DIM))
    with pytest.raises(UserError, match="max_length must be at least 1, got 0"):
        create_attention("synthesizer", dim=DIM, heads=2, role="global", max_length=0)
