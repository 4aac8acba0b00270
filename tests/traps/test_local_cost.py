"""The cost of windows, strides and blocks: no tensor is as large as the square of the length."""

from typing import Any

import pytest
import torch
from torch import Tensor

from attention_zoo import create_attention
from attention_zoo.backends import flex
from attention_zoo.masks import Mask
from attention_zoo.zoo import ATTENTION
from tests.conformance.cases import SMALL, mark_exhaustive
from tests.conformance.configs import options
from tests.conformance.numbers import default_dtype
from tests.traps.memory import measure_memory

DIM = 16
LONG = 8192
# Entries that look at a number of tokens by default, and without a selection by scores.
SPARSE = [
    (name, role)
    for name in ATTENTION
    if any(options("attention", name).get(x) is not None for x in SMALL)
    and not ATTENTION.card(name).chooses
    for role in ATTENTION.card(name).roles
    if role != "cross"
]
SLOW = ("titans", "ttt_linear", "ttt_mlp")


def is_sparse(length: int, mask: Mask, name: str, role: str, **sizes: Any) -> bool:
    """Return whether no tensor is as large as a mask of length², nor all together as scores are."""
    with default_dtype("float32"):
        attention = create_attention(name, dim=DIM, role=role, **sizes | {"heads": 1})
        x = torch.randn(1, length, DIM, requires_grad=True)
        memory = measure_memory(lambda: attention(x, mask=mask))
    return memory.largest < length**2 and memory.peak < 4 * length**2


@pytest.mark.parametrize(
    "kind", mark_exhaustive((kind, "a mask") for kind in ("biased", "plain", "padded", "packed"))
)
@pytest.mark.parametrize(
    ("name", "role"),
    # The entries that learn while they read take seconds each.
    [
        *mark_exhaustive((x, x[0]) for x in SPARSE if x[0] not in SLOW),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in SPARSE if x[0] in SLOW),
    ],
)
def test_no_square_of_the_length_is_built(name: str, role: str, kind: str) -> None:
    """A window or stride of 128, or mini-batches of 256, over 8,192 tokens, with gradients."""
    card = ATTENTION.card(name)
    real = torch.ones(1, LONG, dtype=torch.bool)
    real[:, :100] = False
    masks = {
        "padded": Mask(key_mask=real if "key_mask" in card.masks else None),
        "packed": Mask(
            segment_ids=torch.arange(LONG)[None] // 1000 if "segment_ids" in card.masks else None
        ),
    }
    position = "alibi" if kind == "biased" and "scores" in card.positions else None
    sizes = options("attention", name)
    changes = {"window": 128, "stride": 128, "dilation": 3, "block": 64, "mini_batch_size": 256}
    sizes |= {option: size for option, size in changes.items() if option in sizes}
    assert is_sparse(LONG, masks.get(kind, Mask()), name, role, position=position, **sizes)


@pytest.mark.parametrize("role", mark_exhaustive((x, "self") for x in ("causal", "global")))
@pytest.mark.parametrize(
    ("name", "sizes", "calls"),
    [
        ("sliding_window", {"window": 128}, [96]),
        ("dilated", {"window": 128, "dilation": 3}, [33]),
        ("longformer", {"window": 128, "global_tokens": 2}, [128, 32]),
        (
            "big_bird",
            {"block": 64, "global_blocks": 1, "random_blocks": 2, "seed": 0},
            [32 + 32 * 8],
        ),
    ],
)
def test_block_masks_hold_the_visible_blocks(
    name: str, role: str, sizes: dict[str, int], calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are 32 × 32 blocks of 128, or 11 × 11 for each of three classes of tokens.

    A window is seen from 3 blocks at most, 2 where it is causal; a global token, from all.
    """
    counts = []

    def count_blocks(q: Tensor, k: Tensor, v: Tensor, *, block_mask: Any, **options: Any) -> Tensor:
        counts.append((block_mask.kv_num_blocks + block_mask.full_kv_num_blocks)[0].sum().item())
        return q

    monkeypatch.setattr(flex, "uncompiled_flex_attention", count_blocks)
    attention = create_attention(name, dim=DIM, heads=2, role=role, backend="flex", **sizes)
    attention(torch.randn(1, 4096, DIM))
    assert all(0 < count <= most for count, most in zip(counts, calls, strict=True))


@pytest.mark.parametrize("role", mark_exhaustive((x, "self") for x in ("causal", "global")))
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("multi_head", {}),
        ("grouped_query", {"kv_heads": 1}),
        ("qk_norm", {}),
        ("attention_sink", {}),
    ],
)
def test_a_window_by_an_option_builds_no_square(
    name: str, sizes: dict[str, Any], role: str
) -> None:
    sizes = options("attention", name) | {"window": 128} | sizes
    assert is_sparse(LONG, Mask(), name, role, **sizes)


@pytest.mark.parametrize("name", ["multi_token", "selective"])
def test_scores_of_all_keys_are_a_square_in_spite_of_a_window(name: str) -> None:
    """As their documentation says."""
    sizes = {"head_kernel": 1} if name == "multi_token" else {}
    sizes = options("attention", name) | {"window": 128} | sizes
    assert not is_sparse(LONG // 8, Mask(), name, "causal", **sizes)


def test_the_square_of_a_dense_attention_is_noticed() -> None:
    assert not is_sparse(LONG // 4, Mask(), "multi_head", "causal", backend="reference")


def test_memory_counts_what_is_alive() -> None:
    x = torch.ones(1000, requires_grad=True)
    # x·2, its exponential, which is kept for the gradient, and the sum; then the gradients.
    memory = measure_memory(lambda: (x * 2.0).exp())
    assert memory.largest == 8000
    assert 16_000 <= memory.peak <= 40_000
