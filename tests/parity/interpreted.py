"""flash-linear-attention's kernels without a GPU, by Triton's interpreter."""

import builtins
import sys
from collections.abc import Iterator
from typing import Any

import pytest


def interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernels that are imported run on a CPU, where `TRITON_INTERPRET` is set.

    It does not measure which configuration is the fastest, which takes a GPU; and loops of the
    kernels count in Triton's numbers, as they do when compiled, not in Python's.
    """
    import numpy
    import triton.language as tl
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.interpreter import TensorHandle

    def counted(*bounds: Any) -> Iterator[tl.tensor]:
        for number in builtins.range(*map(int, bounds)):
            yield tl.tensor(
                TensorHandle(numpy.array([number], dtype=numpy.int32), tl.int32), tl.int32
            )

    monkeypatch.setattr(Autotuner, "_bench", lambda *_, **__: (0.0, 0.0, 0.0))
    for name, module in list(sys.modules.items()):
        if name.startswith("fla.ops.") and hasattr(module, "triton"):
            monkeypatch.setitem(vars(module), "range", counted)
