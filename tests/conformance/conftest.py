"""Conformance is tested in float64."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_zoo.backends import flex
from tests.conformance.numbers import default_dtype


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with default_dtype("float64"):
        yield


@pytest.fixture(autouse=True)
def gradients_of_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention's plain form has gradients on a CPU, which PyTorch refuses, and so do we.

    With both refusals lifted they are held against the equation, as are those of other backends.
    """
    monkeypatch.setattr(flex, "TRAINABLE_DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_validate_device", lambda *_: None)
    uncompiled = flex.uncompiled_flex_attention

    def quicker(*args: Any, score_mod: Any, **options: Any) -> Tensor:
        """Without tracing, which only the gradients of what a score function captures need."""
        with monkeypatch.context() as patch:
            name = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
            patch.setattr(torch.nn.attention.flex_attention, name, score_mod is None)
            return uncompiled(*args, score_mod=score_mod, **options)

    monkeypatch.setattr(flex, "uncompiled_flex_attention", quicker)
    # Of what it does with inputs that are results themselves.
    warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf")
