"""`backend=fla` computes what `backend=torch` does.

The plain forms in flash-linear-attention take the same arguments, and check what the kernels get.
The kernels themselves run where there is Triton and a CUDA GPU, or `TRITON_INTERPRET=1`.
"""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_zoo import Unsupported, create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.attention.recurrent import kernels
from attention_zoo.masks import Mask
from attention_zoo.zoo import ATTENTION
from tests.conformance.configs import options
from tests.conformance.definition import key_mask
from tests.conformance.numbers import default_dtype, values_and_gradients
from tests.parity.compared import fla
from tests.parity.interpreted import interpret

# Of what flash-linear-attention misses on import: a GPU, and packages that nothing here needs.
pytestmark = pytest.mark.filterwarnings("ignore")

DIM, HEADS, LENGTH = 64, 2, 70
SERVED = [
    name
    for name in ATTENTION
    if "fla" in getattr(ATTENTION[name], "backends", ()) and "backend" in options("attention", name)
]


def naive_gla(q: Tensor, *, g: Tensor, scale: float, **rest: Any) -> tuple[Tensor, Tensor]:
    """Run theirs, which has another name for the decay, and another scale."""
    return fla("gla").naive_recurrent_gla(q * q.shape[-1] ** 0.5 * scale, gk=g, **rest)


PLAIN = {
    "chunk_simple_gla": lambda **heads: fla("simple_gla").naive_recurrent_simple_gla(**heads),
    "chunk_gla": naive_gla,
    "chunk_gated_delta_rule": lambda **heads: fla(
        "gated_delta_rule"
    ).naive_recurrent_gated_delta_rule(**heads),
    "chunk_kda": lambda **heads: fla("kda").naive_recurrent_kda(**heads),
}


def packages_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "missing_packages", lambda: [])


def plain_forms(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    packages_installed(monkeypatch)
    monkeypatch.setattr(kernels, "has_kernels", lambda device: True)
    monkeypatch.setattr(kernels, "load_kernel", lambda operation, name: PLAIN[name])
    return torch.device("cpu")


def triton_kernels(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("There is no Triton.")
    for name in ("simple_gla", "gla", "gated_delta_rule", "kda"):
        importlib.import_module(f"fla.ops.{name}")
    if os.environ.get("TRITON_INTERPRET") == "1":
        monkeypatch.setattr(kernels, "has_kernels", lambda device: True)
        interpret(monkeypatch)
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("There is no CUDA GPU for Triton, and no TRITON_INTERPRET=1.")
    return torch.device("cuda")


@pytest.fixture(params=[plain_forms, triton_kernels], ids=lambda form: form.__name__)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    with default_dtype("float32"):
        yield request.param(monkeypatch)


def pair(name: str, device: torch.device) -> tuple[Attention, Attention]:
    """Create an entry with the kernels and one without, with the same parameters."""
    chosen = options("attention", name) | {"heads": HEADS}
    ours, theirs = (
        create_attention(name, dim=DIM, role="causal", **chosen | {"backend": backend}).to(device)
        for backend in ("fla", "torch")
    )
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def assert_near(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Compare by the largest number of each: they take differences of sums in float32.

    By the plain forms no error was above 2e-6, by the kernels, interpreted, none above 2e-5.
    """
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


@pytest.mark.parametrize("padded", [False, True], ids=["open", "padded"])
@pytest.mark.parametrize("name", SERVED)
def test_kernels_compute_the_recurrence(name: str, padded: bool, device: torch.device) -> None:
    ours, theirs = pair(name, device)
    x = torch.randn(2, LENGTH, DIM, device=device)
    mask = Mask(key_mask=key_mask("left", 2, LENGTH).to(device)) if padded else Mask()
    assert_near(
        values_and_gradients(lambda x: ours(x, mask=mask), ours, x),
        values_and_gradients(lambda x: theirs(x, mask=mask), theirs, x),
    )


@pytest.mark.parametrize("name", SERVED)
def test_kernels_go_on_from_a_state(name: str, device: torch.device) -> None:
    ours, theirs = pair(name, device)
    x = torch.randn(2, 9, DIM, device=device)
    cache = ours.new_cache()
    parts = [ours(part, cache=cache) for part in x.split([5, 1, 3], dim=1)]
    assert_near([torch.cat(parts, dim=1)], [theirs(x)])


def test_the_entries_that_can_choose_kernels() -> None:
    assert [
        *("delta", "delta_product", "gated_delta", "gated_delta_product", "gated_linear"),
        *("hgrn2", "kimi_delta", "lightning", "retention", "state_space_dual"),
        "trapezoidal_state_space",
    ] == SERVED


REFUSALS: list[tuple[Callable[[pytest.MonkeyPatch], object], dict[str, Any], str]] = [
    (plain_forms, {"segment_ids": torch.zeros(1, 5).long()}, "cannot keep packed segments apart"),
    (packages_installed, {}, "CUDA GPUs only, got .* cpu"),
    (plain_forms, {}, "computes in float32 at most, got float64"),
]


@pytest.mark.parametrize("name", ["retention", "gated_delta"])
@pytest.mark.parametrize(("prepare", "fields", "message"), REFUSALS)
def test_what_kernels_cannot_do_is_refused(
    prepare: Callable[[pytest.MonkeyPatch], object],
    fields: dict[str, Any],
    message: str,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(monkeypatch)
    attention, _ = pair(name, torch.device("cpu"))
    with pytest.raises(Unsupported, match=message):
        attention(torch.randn(1, 5, DIM), mask=Mask(**fields))


def test_missing_packages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "missing_packages", lambda: ["triton"])
    with pytest.raises(Unsupported, match=r"no triton\. Install attention-zoo\[fla\]"):
        create_attention("delta", dim=DIM, heads=HEADS, role="causal", backend="fla")
