"""What backends share, and what they refuse."""

import shutil
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_zoo import Unsupported, create_attention
from attention_zoo.backends import BACKENDS, flex, reference, sdpa
from attention_zoo.masks import Mask, Visibility
from attention_zoo.zoo import Role
from tests.conformance.definition import key_mask, packed
from tests.conformance.numbers import assert_same
from tests.traps.memory import measure_memory

CPU = torch.device("cpu")


def build(name: str = "multi_head", **options: Any) -> Any:
    return create_attention(name, dim=16, heads=4, role="causal", **options)


@pytest.mark.parametrize(
    ("name", "options", "backend"),
    [
        ("multi_head", {}, "sdpa"),
        ("sliding_window", {"window": 3}, "sdpa"),
        ("strided_sparse", {"stride": 3}, "blocks"),
    ],
)
def test_auto_is_what_serves_everywhere(name: str, options: dict[str, Any], backend: str) -> None:
    assert build(name, **options).backend == backend


def test_five_frames_lead_from_forward_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, library = sdpa.scaled_dot_product_attention, Path(sdpa.__file__).parents[1]
    stacks: list[list[str]] = []

    def record_stack(*args: Any, **options: Any) -> Tensor:
        stack = traceback.extract_stack()
        stacks.append([f.name for f in stack if Path(f.filename).is_relative_to(library)])
        return kernel(*args, **options)

    monkeypatch.setattr(sdpa, "scaled_dot_product_attention", record_stack)
    build(position="rotary")(torch.randn(1, 3, 16))
    assert stacks == [["forward", "attend_tokens", "attend_shared", "attend", "attend"]]


@pytest.mark.parametrize("name", ["multi_head", "multi_head_latent", "grouped_latent"])
def test_a_cpu_computes_no_weights_whatever_the_widths(name: str) -> None:
    """Its kernel takes one width; the other way makes all weights of a head [q k]."""
    attention = build(name)
    with torch.profiler.profile() as profile:
        attention(torch.randn(2, 40, 16)).sum().backward()
    called = {event.key for event in profile.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in called
    assert "aten::_scaled_dot_product_attention_math" not in called


@pytest.mark.parametrize("widths", [(4, 7), (7, 4)])
@pytest.mark.parametrize("causal", [False, True])
def test_values_of_another_width(widths: tuple[int, int], causal: bool) -> None:
    q, k = (torch.randn(2, 3, 5, widths[0], requires_grad=True) for _ in range(2))
    v = torch.randn(2, 3, 5, widths[1], requires_grad=True)
    visible = Visibility(mask=Mask(causal=causal), rows=range(5), columns=range(5))
    results = []
    for backend in (sdpa, reference):
        out = backend.attend(q, k, v, visible=visible, scale=0.3)
        results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for ours, expected in zip(*results, strict=True):
        assert_same(ours, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("length, is_wide", [(20, True), (300, False)])
def test_a_cpu_differentiates_short_attention_in_float32(
    dtype: torch.dtype, autocast: bool, length: int, is_wide: bool
) -> None:
    """In half precision the kernel's backward pass takes several times as long."""
    inputs = [torch.randn(2, 3, length, 16, dtype=torch.float32).to(dtype) for _ in range(3)]
    wide = [x.float().requires_grad_() for x in inputs]
    given = [(x.float() if autocast else x.clone()).requires_grad_() for x in inputs]
    visible = Visibility(mask=Mask(causal=True), rows=range(length), columns=range(length))
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        out = sdpa.attend(*given, visible=visible, scale=0.25)
    assert out.dtype == dtype
    expected = sdpa.attend(*wide, visible=visible, scale=0.25)
    of_out = torch.randn(out.shape, dtype=torch.float32).to(dtype)
    gradients = torch.autograd.grad(out, given, of_out)
    of_wide = torch.autograd.grad(expected, wide, of_out.float())
    same = [
        torch.equal(x.to(dtype), y.to(dtype))
        for x, y in zip((out, *gradients), (expected, *of_wide), strict=True)
    ]
    assert all(same) == is_wide
    with torch.no_grad():  # Without a gradient, half precision is as fast, and takes less memory.
        assert torch.equal(sdpa.attend(*inputs, visible=visible, scale=0.25), out) != is_wide


def test_autocast_leaves_double_precision_alone() -> None:
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    visible = Visibility(mask=Mask(causal=True), rows=range(5), columns=range(5))
    with torch.autocast("cpu"):
        out = sdpa.attend(q, k, v, visible=visible, scale=0.5)
    assert_same(out, sdpa.attend(q, k, v, visible=visible, scale=0.5))


def test_a_backend_that_cannot_serve_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"backend 'sdpa'.* Choices: auto, blocks, flex"):
        build("strided_sparse", stride=3, backend="sdpa")


def test_flex_refuses_to_drop_weights() -> None:
    with pytest.raises(Unsupported, match=r"backend=flex cannot drop weights, got dropout=0\.1"):
        build(backend="flex", dropout=0.1)


def test_flex_refuses_gradients_where_it_has_none() -> None:
    attention, x = build(backend="flex"), torch.randn(2, 5, 16)
    with pytest.raises(Unsupported, match=r"no gradients on cpu.*Train with backend=auto"):
        attention(x)
    other = build()
    other.load_state_dict(attention.state_dict())
    with torch.no_grad():
        assert_same(attention(x), other(x))


def odd_pairs(b: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return (i + j + b) % 2 == 1


MASKS = {
    "causal": Mask(causal=True),
    "window": Mask(window=4),
    "past": Mask(causal=True, window=4),
    "key_mask": Mask(key_mask=key_mask("interior", 2, 9)),
    "segment_ids": Mask(segment_ids=packed([4, 2, 3], 2)),
    "pairs": Mask(segment_ids=packed([4, 2, 3], 2), query_segment_ids=packed([1, 2, 3], 2)),
}


@pytest.mark.parametrize("sinks", [0, 1, 2])
@pytest.mark.parametrize("pattern", [None, odd_pairs])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_mask_mod_is_the_mask(mask: Mask, pattern: Any, sinks: int) -> None:
    """Of the 32-bit numbers that kernels have, for any part of a mask."""
    if pattern is not None and mask.key_mask is None and mask.segment_ids is None:
        mask = Mask(causal=mask.causal, window=mask.window, key_mask=torch.ones(2, 9).bool())
    for rows, columns in ((range(3, 9), range(9)), (range(3, 9), range(2, 9))):
        visible = Visibility(mask=mask, rows=rows, columns=columns, pattern=pattern, sinks=sinks)
        mask_mod, dense = flex.create_mask_mod(visible, 2, CPU), visible.dense(CPU)
        assert mask_mod is not None and dense is not None
        b, i, j = (torch.arange(n, dtype=torch.int32) for n in (2, 6, len(columns) + sinks))
        b, i = b[:, None, None], i[:, None]
        assert torch.equal(mask_mod(b, b, i, j).expand(2, -1, -1), dense[:, 0].expand(2, -1, -1))


def test_no_mask_mod_is_made_where_everything_is_visible() -> None:
    assert (
        flex.create_mask_mod(Visibility(mask=Mask(), rows=range(4), columns=range(4)), 2, CPU)
        is None
    )
    last = Visibility(mask=Mask(causal=True), rows=range(3, 4), columns=range(4))
    assert flex.create_mask_mod(last, 2, CPU) is None


@pytest.mark.parametrize("name", BACKENDS)
def test_a_mask_that_all_rows_share_may_have_one(name: str) -> None:
    """[1 k], also where a pattern is counted from what is padded."""
    shared, whole = (Mask(key_mask=key_mask("left", 2, 9)[1:].expand(n, -1)) for n in (1, 2))
    x = torch.randn(2, 9, 16)
    attention = build(backend=name)
    big_bird = build("big_bird", block=2, global_blocks=1, random_blocks=1, seed=0, backend="flex")
    with torch.no_grad():
        for part in (attention, big_bird):
            assert_same(part(x, mask=shared), part(x, mask=whole))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="There is no g++, which compiles for a CPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own use of torch.jit
def test_what_a_gpu_compiles_can_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask's function and the bias's, by the compiler's other half: C++ in place of Triton."""
    monkeypatch.setattr(flex, "COMPILED_DEVICES", ("cpu", "cuda"))
    torch.compiler.reset()
    length = 150
    mask = Mask(
        window=50, key_mask=key_mask("left", 2, length), segment_ids=packed([40, 30, 80], 2)
    )
    ours, theirs = (
        build("grouped_query", kv_heads=2, position="alibi", backend=name).float()
        for name in ("flex", "sdpa")
    )
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, length, 16, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, mask=mask), theirs(x, mask=mask))


@pytest.mark.parametrize("position", ["alibi", "sandwich"])
@pytest.mark.parametrize("role", ["causal", "global"])
def test_a_bias_that_rows_share_is_not_repeated_for_padding(position: str, role: Role) -> None:
    batch, heads, length = 8, 4, 64
    attention = create_attention(
        "multi_head", dim=32, heads=heads, role=role, position=position, backend="sdpa"
    )
    real = torch.arange(length) >= torch.arange(batch)[:, None] * 5
    x = torch.randn(batch, length, 32)
    memory = measure_memory(lambda: attention(x, mask=Mask(key_mask=real)))
    assert memory.largest < batch * heads * length * length * x.itemsize


@pytest.mark.parametrize("position", ["alibi", "sandwich"])
def test_gradients_are_finite_where_a_query_sees_only_padding(position: str) -> None:
    """In float32, in which scores that are computed twice differ by their rounding."""
    attention = create_attention("multi_head", dim=32, heads=4, role="causal", position=position)
    attention.float()
    x = torch.randn(2, 13, 32, dtype=torch.float32, requires_grad=True)
    attention(x, mask=Mask(key_mask=key_mask("left", 2, 13))).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_padding_beside_a_bias_is_exact(dtype: str) -> None:
    kind = getattr(torch, dtype)
    q, k, v = torch.randn(3, 3, 4, 7, 5, dtype=kind).unbind()
    bias = torch.randn(1, 4, 7, 7, dtype=kind)
    real = torch.tensor([[False] * 3 + [True] * 4, [True] * 7, [False] * 7])
    visible = Visibility(mask=Mask(causal=True, key_mask=real), rows=range(7), columns=range(7))
    seen = {"visible": visible, "bias": bias, "scale": 0.5}
    got = sdpa.attend(q, k, v, **seen)
    # What stands at padded keys makes no difference, not even in the last digit.
    others = (
        torch.where(real[:, None, :, None], k, 100 * k),
        v.masked_fill(~real[:, None, :, None], 9),
    )
    assert torch.equal(got, sdpa.attend(q, *others, **seen))
    assert (got[0, :, :3] == 0).all() and (got[2] == 0).all()
    wide = [part.double() for part in (q, k, v)]
    expected = reference.attend(*wide, **seen | {"bias": bias.double()})
    error = (got.double() - expected).abs().max()
    assert error < 20 * torch.finfo(kind).eps


def test_padding_beside_a_bias_stays_finite_where_autocast_takes_it_to_half() -> None:
    q, k, v = torch.randn(3, 2, 4, 7, 5, dtype=torch.float32).unbind()
    bias = torch.randn(1, 4, 7, 7)
    real = torch.tensor([[True] * 4 + [False] * 3, [True] * 7])
    visible = Visibility(mask=Mask(key_mask=real), rows=range(7), columns=range(7))
    seen = {"visible": visible, "bias": bias.float(), "scale": 0.5}
    with torch.autocast("cpu", torch.float16):
        got = sdpa.attend(q, k, v, **seen)
    expected = reference.attend(q, k, v, **seen)
    assert (got.float() - expected).abs().max() < 20 * torch.finfo(torch.float16).eps
