"""The recurrences by the Triton kernels of flash-linear-attention, for CUDA GPUs.

    S_t = a_t S_{t−1} + k_tᵀ v_t             chunk_simple_gla: retention, lightning,
                                             state_space_dual, trapezoidal_state_space
    S_t = diag(a_t) S_{t−1} + k_tᵀ v_t       chunk_gla: gated_linear, hgrn2
    the delta rule, a decay for a head       chunk_gated_delta_rule: delta (no decay), gated_delta,
                                             and the steps of their products one by one
    the delta rule, a decay for a channel    chunk_kda: kimi_delta

They compute in float32 at most. They cannot serve packed rows: a segment starts with a decay of −∞,
which is lost in the differences of sums that they take. `chunk_delta_rule` is not used, as it
refuses float32. No kernel fits the other entries: rwkv7 reads its state before it decays, and comba
erases before; linear rotates queries and keys in the numerator only; path, mesa and log_linear have
more than one recurrence.
"""

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.backends import resolve
from attention_zoo.errors import Unsupported
from attention_zoo.masks import Mask

BACKENDS = ("torch", "fla")


def resolve_backend(name: str) -> str:
    """Return the one of `BACKENDS` that a name means; refuse one whose packages are missing."""
    name = resolve(name, BACKENDS)
    missing = missing_packages() if name == "fla" else []
    if missing:
        raise Unsupported(
            f"backend=fla needs flash-linear-attention and Triton, and there is no "
            f"{' and no '.join(missing)}. Install attention-zoo[fla], or choose backend=torch."
        )
    return name


def check_inputs(backend: str, mask: Mask, x: Tensor) -> None:
    """Refuse packed rows, and a tensor on a device or of a type that the kernels do not take."""
    if backend == "torch":
        return
    reason = ""
    if mask.segment_ids is not None:
        reason = "cannot keep packed segments apart, and the mask has some"
    elif not has_kernels(x.device):
        reason = f"runs on CUDA GPUs only, got a tensor on {x.device.type}"
    elif x.dtype == torch.float64:
        reason = "computes in float32 at most, got float64"
    if reason:
        raise Unsupported(f"backend=fla {reason}. Choose backend=torch for it.")


def decayed_product(steps: Steps, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute what `decayed.decayed_product` does."""
    q, k, v, _, _, decay, *_ = steps
    assert decay is not None
    decay = decay.expand(len(q), -1, -1, -1)
    if decay.shape[-1] == 1:
        return run_kernel("simple_gla", state, q=q, k=k, v=v, g=decay[..., 0])
    return run_kernel("gla", state, q=q, k=k, v=v, g=decay)


def delta_rule(steps: Steps, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute what `delta_rule.delta_rule` does, for steps that have a rate."""
    q, _, v, k, write, decay, rate, _ = steps
    assert write is None and k is not None and rate is not None
    rate = rate[..., 0]
    if decay is not None and decay.shape[-1] > 1:
        return run_kernel("kda", state, q=q, k=k, v=v, g=decay, beta=rate)
    g = torch.zeros_like(rate) if decay is None else decay[..., 0]
    return run_kernel("gated_delta_rule", state, q=q, k=k, v=v, g=g, beta=rate)


def run_kernel(name: str, state: Tensor | None, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Run a kernel, which takes inputs [b h t …] as [b t h …]; states are [b h c e] in both."""
    transposed = {part: tensor.transpose(1, 2) for part, tensor in inputs.items()}
    options = {"scale": 1.0, "initial_state": state, "output_final_state": True}
    out, last = load_kernel(name, f"chunk_{name}")(**transposed, **options)
    return out.transpose(1, 2), last


@cache
def load_kernel(operation: str, name: str) -> Callable[..., Any]:
    """Import a kernel of flash-linear-attention."""
    return getattr(importlib.import_module(f"fla.ops.{operation}"), name)


def missing_packages() -> list[str]:
    """Return the names of the packages that are not installed."""
    return [name for name in ("fla", "triton") if importlib.util.find_spec(name) is None]


def has_kernels(device: torch.device) -> bool:
    """Return whether the kernels run on a device."""
    return device.type == "cuda"
