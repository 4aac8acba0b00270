"""How a fault is planted, and named with the property that must notice it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from torch import Tensor

from attention_zoo.backends import BACKENDS
from attention_zoo.masks import Mask, Visibility
from tests.conformance.cases import Case

Plant = Callable[[pytest.MonkeyPatch], None]
FAULTS: list[Any] = []


def caught_by(prop: Callable[..., None], *args: object) -> Callable[[Plant], Plant]:
    """Enters a fault, with the property that must notice it."""

    def enter(plant: Plant) -> Plant:
        name = f"{plant.__name__}-{prop.__name__}"
        # Several faults show that a property works.
        is_known = any(fault.id.endswith(prop.__name__) for fault in FAULTS)
        marks = [pytest.mark.exhaustive] if is_known else []
        FAULTS.append(pytest.param(plant, partial(prop, *args), id=name, marks=marks))
        return plant

    return enter


def plain(name: str, role: str = "causal", position: str | None = None) -> Case:
    return Case(name, role, position)  # type: ignore[arg-type]


def render_mask_as(patch: pytest.MonkeyPatch, change: Callable[[Mask], Mask]) -> None:
    """Render masks as if they were others."""
    render_as(patch, lambda visible: replace(visible, mask=change(visible.mask)))


def render_as(patch: pytest.MonkeyPatch, change: Callable[[Visibility], Visibility]) -> None:
    """Render who sees whom as if it were something else."""
    dense = Visibility.dense
    patch.setattr(Visibility, "dense", lambda visible, device: dense(change(visible), device))


def change_arguments(
    patch: pytest.MonkeyPatch, name: str, change: Callable[..., dict[str, Any]]
) -> None:
    """Give a backend other arguments."""
    attend = BACKENDS[name].attend

    def wrong(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        return attend(**{"q": q, "k": k, "v": v} | options | change(q=q, k=k, v=v, **options))

    patch.setitem(BACKENDS, name, BACKENDS[name]._replace(attend=wrong))


ALIBI, T5, ROTARY = (
    Case("multi_head", "causal", position) for position in ("alibi", "t5_bias", "rotary")
)

HALVES = [(0, 3), (1, 4), (2, 5)]
