"""Attention by combinations of tokens, and by landmarks."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import Unsupported, UserError, create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.attention.low_rank.nystrom import NystromAttention, pseudo_inverse
from attention_zoo.masks import Mask
from tests.conformance.numbers import assert_same

DIM, HEADS = 16, 4
NAMES = pytest.mark.parametrize("name", ["linformer", "nystrom"])


def low_rank(name: str, **options: object) -> Attention:
    """Create an entry with biases, so that a padded key or value is never zero."""
    sizes: dict[str, object] = {"dim": DIM, "heads": HEADS, "role": "global", "bias": True}
    return create_attention(name, **sizes | options)


@NAMES
@pytest.mark.parametrize("role", ["causal", "cross"])
def test_there_is_no_causal_and_no_cross_form(name: str, role: str) -> None:
    with pytest.raises(Unsupported, match=f"{name} cannot be {role} attention"):
        low_rank(name, role=role)


@NAMES
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_gives_what_its_tokens_give_alone(name: str, side: str) -> None:
    attention = low_rank(name)
    real = torch.ones(2, 90, dtype=torch.bool)
    real[1, :20] = False
    real = real.flip(1) if side == "right" else real
    x, positions = torch.randn(2, 90, DIM), (real.cumsum(dim=1) - 1).clamp(min=0)
    together = attention(x, mask=Mask(key_mask=real), positions=positions)
    assert_same(together[1, real[1]], attention(x[1, real[1]][None])[0])


@NAMES
def test_work_is_linear_in_length(name: str) -> None:
    attention = low_rank(name)

    def work(length: int) -> int:
        with FlopCounterMode(display=False) as counter:
            attention(torch.randn(1, length, DIM))
        return counter.get_total_flops()

    assert work(1024) - work(768) == work(768) - work(512)


# Linformer.


def test_linformer_refuses_longer_input() -> None:
    attention = low_rank("linformer", max_length=6)
    attention(torch.randn(1, 6, DIM))
    with pytest.raises(UserError, match="max_length=6, got 7 tokens"):
        attention(torch.randn(1, 7, DIM))


def test_linformer_refuses_a_causal_mask() -> None:
    with pytest.raises(Unsupported, match="linformer as global attention cannot honour the mask c"):
        low_rank("linformer")(torch.randn(1, 6, DIM), mask=Mask(causal=True))


def test_linformer_knows_tokens_by_their_positions() -> None:
    attention = low_rank("linformer")
    x, positions = torch.randn(1, 6, DIM), torch.tensor([[3, 0, 4, 1, 5, 2]])
    in_order = attention(x[:, positions[0].argsort()])
    assert_same(attention(x, positions=positions), in_order[:, positions[0]])
    assert not torch.allclose(attention(x), in_order[:, positions[0]])


# Nyström.


def nystrom(**options: object) -> NystromAttention:
    attention = low_rank("nystrom", **options)
    assert isinstance(attention, NystromAttention)
    return attention


@pytest.mark.parametrize(
    ("length", "padded", "expected"),
    [
        (8, 0, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (10, 0, [[0, 1, 2], [3, 4], [5, 6, 7], [8, 9]]),
        (3, 0, [[0], [1], [2]]),
        # The first two are padding, and one in the middle is too.
        (9, 2, [[2, 4], [5], [6, 7], [8]]),
        (5, 2, [[2], [4]]),
    ],
)
def test_landmarks_are_made_of_neighbouring_real_tokens(
    length: int, padded: int, expected: list[list[int]]
) -> None:
    real = torch.ones(1, length, dtype=torch.bool)
    if padded:
        real[0, [0, 1, 3]] = False
    members, _ = nystrom(landmarks=4).assign_landmarks(
        torch.empty(1, length, DIM), Mask(key_mask=real)
    )
    actual = [row.nonzero()[:, 0].tolist() for row in members[0]]
    assert [tokens for tokens in actual if tokens] == expected


def test_the_inverse_knows_no_other_row_and_no_other_head() -> None:
    """The largest column sum of the batch would be another start, visible after six steps."""
    attention = nystrom(landmarks=4)
    x = torch.randn(2, 12, DIM)
    assert_same(attention(x)[:1], attention(x[:1]))
    matrix = torch.randn(1, 2, 5, 5).mul(3).softmax(dim=-1)
    whole = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    assert_same(pseudo_inverse(matrix, whole)[:, :1], pseudo_inverse(matrix[:, :1], whole))


def test_the_inverse_of_a_good_matrix_is_found() -> None:
    matrix = (4.0 * torch.eye(6) + torch.randn(1, 1, 6, 6)).softmax(dim=-1)
    actual = pseudo_inverse(matrix, torch.ones(1, 1, 6, 6, dtype=torch.bool))
    torch.testing.assert_close(actual, torch.linalg.pinv(matrix), rtol=1e-3, atol=1e-3)


def test_landmarks_of_all_tokens_give_softmax_attention() -> None:
    """The matrix is good enough for the iteration to find its inverse."""
    attention = nystrom(heads=1, bias=False)
    with torch.no_grad():
        attention.query.weight.copy_(4.0 * torch.eye(DIM))
        attention.key.weight.copy_(4.0 * torch.eye(DIM))
        attention.convolution.weight.zero_()
    x = torch.eye(DIM)[None, :9]
    expected = (4.0 * torch.eye(9)).softmax(dim=-1)[None, None]
    torch.testing.assert_close(attention.attention_map(x), expected, rtol=1e-3, atol=1e-3)


def test_the_convolution_stays_in_its_head_and_off_padding() -> None:
    attention = nystrom(convolution=3)
    plain = nystrom(convolution=3)
    plain.load_state_dict(attention.state_dict())
    with torch.no_grad():
        plain.convolution.weight.zero_()
    x, real = torch.randn(1, 6, DIM), torch.tensor([[True, True, False, True, True, True]])
    mask = Mask(key_mask=real)
    added = (attention.attention_map(x, mask=mask) - plain.attention_map(x, mask=mask))[0]
    for head in range(HEADS):
        left, middle, right = attention.convolution.weight[head, 0, :, 0].tolist()
        expected = torch.zeros(6, 6)
        # Padding is no neighbour of a real token, and has none.
        for before, i, after in ((None, 0, 1), (0, 1, 3), (1, 3, 4), (3, 4, 5), (4, 5, None)):
            for j, weight in ((before, left), (i, middle), (after, right)):
                if j is not None:
                    expected[i, j] = weight
        assert_same(added[head], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"landmarks": 0}, "landmarks must be at least 1, got 0"),
        ({"convolution": 4}, "convolution must be odd, to have a middle, got 4"),
    ],
)
def test_options_of_nystrom(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        nystrom(**options)
