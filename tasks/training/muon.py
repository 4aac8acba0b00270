"""Muon, with the arithmetic that the device is fast at."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Of `torch.cpu.get_capabilities`, for x86 and ARM: instructions that multiply in bfloat16.
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")

# Numbers in the matrices that are iterated at once: larger ones gain nothing by it.
MAX_BATCH = 2**22


class Muon(torch.optim.Muon):
    """Muon whose Newton-Schulz iteration runs in float32 on CPUs that have no bfloat16.

    `torch.optim.Muon` runs it in bfloat16 on every device, which takes such CPUs many times as long
    as all the rest of a training step. On other devices this class gives the same numbers, except
    that matrices in float64 stay in it. Its step is scaled by 0.2 sqrt(max(rows, columns)): Liu et
    al. 2025, arXiv:2502.16982.
    """

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, adjust_lr_fn="match_rms_adamw", **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all matrices that have a gradient, after one call of `closure`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for batch in batch_by_shape([x for x in group["params"] if x.grad is not None]):
                gradients = [x.grad for x in batch if x.grad is not None]
                step_matrices(batch, gradients, [self.state[x] for x in batch], group)
        return loss


def batch_by_shape(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield matrices of one shape, up to `MAX_BATCH` numbers or a single one at a time."""
    by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        by_shape[parameter.shape].append(parameter)
    for shape, alike in by_shape.items():
        count = max(1, MAX_BATCH // shape.numel())
        for first in range(0, len(alike), count):
            yield alike[first : first + count]


def step_matrices(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
    group: dict[str, Any],
) -> None:
    """Update matrices of one shape and the states of their gradients, in place.

    The options are those of their group.
    """
    updates = []
    for gradient, state in zip(gradients, states, strict=True):
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"]
        mean.lerp_(gradient, 1 - group["momentum"])
        updates.append(gradient.lerp(mean, group["momentum"]) if group["nesterov"] else mean)
    orthogonal = orthogonalize(
        torch.stack(updates) if len(updates) > 1 else updates[0],
        coefficients=group["ns_coefficients"],
        steps=group["ns_steps"],
        eps=group["eps"],
        dtype=iteration_dtype(parameters[0].device.type, parameters[0].dtype),
    )
    rate = -0.2 * math.sqrt(max(parameters[0].shape)) * group["lr"]
    for parameter, update in zip(
        parameters, orthogonal.view(-1, *parameters[0].shape), strict=True
    ):
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=rate)


@cache
def iteration_dtype(device_type: str, dtype: torch.dtype) -> torch.dtype:
    """Return float64 for itself, bfloat16 where a device has instructions for it, else float32."""
    if dtype == torch.float64:
        return dtype
    if device_type != "cpu":
        return torch.bfloat16
    # Older versions of torch do not say what a CPU can do.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    has_bfloat16 = any(capabilities.get(x) for x in BFLOAT16_INSTRUCTIONS)
    return torch.bfloat16 if has_bfloat16 else torch.float32


def orthogonalize(
    matrix: Tensor,
    *,
    coefficients: tuple[float, float, float],
    steps: int,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """Return matrices [… rows columns] with singular values brought near 1, in another dtype.

    Newton-Schulz: X ← a X + (b X Xᵀ + c (X Xᵀ)²) X, from X = matrix / max(‖matrix‖, eps). Five
    steps with the usual coefficients bring all but the smallest singular values near 1.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon.
    """
    a, b, c = coefficients
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    add_product = torch.addmm if matrix.ndim == 2 else torch.baddbmm
    x = matrix.to(dtype, copy=True)
    x = x.mT if is_tall else x  # so that the product below is the smaller one
    x.div_(x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps))
    for _ in range(steps):
        gram = x @ x.mT
        x = add_product(x, add_product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
