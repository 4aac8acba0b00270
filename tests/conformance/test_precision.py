"""Entries in every type that a model may have: weights of half precision, float64, autocast."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_zoo.attention.base import Attention
from attention_zoo.masks import Mask
from attention_zoo.zoo import ATTENTION
from tests.conformance.cases import DIM, Case, over, over_values, plain_cases, positioned_cases
from tests.conformance.definition import key_mask
from tests.conformance.numbers import default_dtype, values_and_gradients

# What Lightning's `16-true`, `bf16-true` and `64-true` make of a model, and its mixed ones.
PRECISIONS = [
    ("weights", torch.float16),
    ("weights", torch.bfloat16),
    ("weights", torch.float64),
    ("autocast", torch.float16),
    ("autocast", torch.bfloat16),
]


@pytest.fixture(autouse=True)
def float32() -> Any:
    with default_dtype("float32"):
        yield


@torch.no_grad()
def outputs(case: Case, attention: Attention, inputs: list[Tensor]) -> list[Tensor]:
    """Of one pass, of the weights, and of decoding in chunks."""
    found = [attention(*inputs), attention.attention_map(*inputs)]
    if case.decodes:
        x, *context = inputs
        cache = attention.new_cache()
        chunks = [attention(part, *context, cache=cache) for part in x.split([20, 1, 12], dim=1)]
        found.append(torch.cat(chunks, dim=1))
    return found


@over_values("kind,dtype", PRECISIONS, positioned_cases())
def test_every_precision_stays_near_float32(case: Case, kind: str, dtype: torch.dtype) -> None:
    """By some roundings of the type, and no further than float32 allows.

    Both have the rounded weights and inputs, so only what is computed differs. What chooses by
    scores may choose otherwise where they are close: then most rows must be near.
    """
    attention = case.attention(dim=4 * DIM).to(dtype)
    inputs = [x.to(dtype) for x in case.inputs(33, dim=4 * DIM)]
    exact = copy.deepcopy(attention).float()
    wide = [x.float() for x in inputs]
    expected = outputs(case, exact, wide)
    if kind == "autocast":
        attention, inputs = exact, wide

    def in_context(function: Callable[..., Any], *args: Any) -> Any:
        with torch.autocast("cpu", dtype) if kind == "autocast" else nullcontext():
            return function(*args)

    ours = in_context(outputs, case, attention, inputs)
    # Backward outside autocast, as in training: within, it would multiply in half precision even
    # where forward was in float32.
    gradients = values_and_gradients(partial(in_context, attention), attention, *inputs)
    assert all(part.isfinite().all() for part in (*ours, *gradients))
    if kind == "weights":
        assert ours[0].dtype == gradients[0].dtype == dtype
    rounding = max(torch.finfo(dtype).eps, 1e-5)
    for a, b in zip(ours, expected, strict=True):
        off, size = (a.float() - b).norm(dim=-1), b.norm(dim=-1)
        error = (
            (off / size.clamp(min=1e-6)).median() if case.card.chooses else off.norm() / b.norm()
        )
        assert error < 4 * rounding


@over_values("rms", [300.0, 1.0, 6.0, 30.0], plain_cases(), every_entry=True)
def test_large_inputs_have_finite_outputs_and_gradients(case: Case, rms: float) -> None:
    attention = case.attention(dim=4 * DIM)
    inputs = [rms * x for x in case.inputs(33, dim=4 * DIM)]
    mask = Mask(key_mask=key_mask("left", 2, 33)) if case.honours("key_mask") else Mask()
    found = values_and_gradients(lambda *args: attention(*args, mask=mask), attention, *inputs)
    assert all(part.isfinite().all() for part in found)


@pytest.mark.parametrize("rms", [11.0, 100.0])
@pytest.mark.parametrize("head_dim", [1, 2, 16])
@over(
    (case for case in plain_cases() if "kernel" in ATTENTION[case.name].__module__),
    every_entry=True,
)
def test_weights_of_features_add_up_to_one(case: Case, head_dim: int, rms: float) -> None:
    """However long queries and keys are, and however few channels they have."""
    attention = case.attention(head_dim=head_dim)
    weights = attention.attention_map(*(rms * x for x in case.inputs(33)))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    found = values_and_gradients(attention, attention, *(rms * x for x in case.inputs(33)))
    assert all(part.isfinite().all() for part in found)


@pytest.mark.parametrize("shape", [-100.0, -17.0, -10.0, 17.0, 100.0])
def test_entmax_towards_its_limits(shape: float) -> None:
    """Softmax where α − 1 is tiny, sparsemax where α is 2."""
    attention = Case("entmax", "causal").attention()
    nn.init.constant_(attention.shape, shape)  # type: ignore[arg-type]
    limit = Case("multi_head" if shape < 0 else "sparsemax", "causal").attention()
    limit.load_state_dict(attention.state_dict(), strict=False)
    (x,) = Case("entmax", "causal").inputs(33)
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if shape == -10.0 else {}
    torch.testing.assert_close(attention(x), limit(x), **tolerance)
    found = values_and_gradients(attention, attention, x)
    assert all(part.isfinite().all() for part in found)


@pytest.mark.parametrize("scale", [1.0, 20.0, 100.0])
def test_laser_is_blind_to_later_values_however_large(scale: float) -> None:
    attention = Case("laser", "causal").attention()
    (x,) = Case("laser", "causal").inputs(33)
    later = x.clone()
    later[:, 20:] *= 100.0
    out = attention(scale * x)
    torch.testing.assert_close(attention(scale * later)[:, :20], out[:, :20], rtol=0.0, atol=0.0)
    cache = attention.new_cache()
    steps = [attention(scale * token, cache=cache) for token in x.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), out, rtol=1e-4, atol=1e-4 * scale)
