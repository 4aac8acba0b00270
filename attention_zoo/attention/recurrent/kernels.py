"""The recurrences by the Triton kernels of flash-linear-attention, for CUDA GPUs.

    S_t = a_t S_{t−1} + k_tᵀ v_t           chunk_simple_gla: retention, state_space_dual
    S_t = diag(a_t) S_{t−1} + k_tᵀ v_t     chunk_gla: gated_linear
    the delta rule, a decay for a head     chunk_gated_delta_rule: delta (no decay), gated_delta
    the delta rule, one for each channel   chunk_kda: kimi_delta

They compute from float32, and are not for packed rows: a decay to nothing, −∞, is lost in the
differences of sums that they take. `chunk_delta_rule` is not used, as it refuses float32. The other
recurrent entries have no kernel that keeps what they are: rwkv7 reads its state before it decays;
linear turns queries and keys in the numerator only; path, mesa and log_linear are made of more than
one recurrence.
"""

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.recurrent.delta_rule import Steps
from attention_zoo.backends import resolve
from attention_zoo.errors import Unsupported
from attention_zoo.masks import Mask

CHOICES = ("torch", "fla")


def chosen(name: str) -> str:
    """Of `CHOICES`, the one that a name stands for.

    Raises:
        Unsupported: there is no such backend, or its packages are missing.
    """
    name = resolve(name, CHOICES)
    lacking = missing() if name == "fla" else []
    if lacking:
        raise Unsupported(
            f"backend=fla needs flash-linear-attention and Triton, and there is no "
            f"{' and no '.join(lacking)}. Install attention-zoo[fla], or choose backend=torch."
        )
    return name


def check(backend: str, mask: Mask, x: Tensor) -> None:
    """Refuse what the kernels cannot do.

    Raises:
        Unsupported: packed rows, or tensors of another device or type than the kernels'.
    """
    if backend == "torch":
        return
    fault = ""
    if mask.segment_ids is not None:
        fault = "cannot keep packed segments apart, and the mask has some"
    elif not runs_on(x.device):
        fault = f"runs on CUDA GPUs only, got a tensor on {x.device.type}"
    elif x.dtype == torch.float64:
        fault = "computes from float32, got float64"
    if fault:
        raise Unsupported(f"backend=fla {fault}. Choose backend=torch for it.")


def decayed_product(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `recurrence.decayed_product`."""
    decay = decay.expand(len(q), -1, -1, -1)
    if decay.shape[-1] == 1:
        simple = kernel("simple_gla", "chunk_simple_gla")
        return run(simple, state, q=q, k=k, v=v, g=decay[..., 0])
    return run(kernel("gla", "chunk_gla"), state, q=q, k=k, v=v, g=decay)


def recurrence(steps: Steps, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `delta_rule.recurrence`, of steps that have a rate."""
    q, _, v, unit, write, decay, rate = steps
    assert write is None and rate is not None
    rate = rate[..., 0]
    if decay is not None and decay.shape[-1] > 1:
        kda = kernel("kda", "chunk_kda")
        return run(kda, state, q=q, k=unit, v=v, g=decay, beta=rate)
    g = torch.zeros_like(rate) if decay is None else decay[..., 0]
    gated = kernel("gated_delta_rule", "chunk_gated_delta_rule")
    return run(gated, state, q=q, k=unit, v=v, g=g, beta=rate)


def run(
    function: Callable[..., tuple[Tensor, Tensor]], state: Tensor | None, **heads: Tensor
) -> tuple[Tensor, Tensor]:
    """With heads [b h t …], which the kernels have as [b t h …]; the state is [b h c e] in both."""
    turned = {name: part.transpose(1, 2) for name, part in heads.items()}
    out, last = function(**turned, scale=1.0, initial_state=state, output_final_state=True)
    return out.transpose(1, 2), last


@cache
def kernel(operation: str, name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"fla.ops.{operation}"), name)


def missing() -> list[str]:
    """The packages that are not installed."""
    return [name for name in ("fla", "triton") if importlib.util.find_spec(name) is None]


def runs_on(device: torch.device) -> bool:
    return device.type == "cuda"
