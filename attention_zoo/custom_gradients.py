"""Functions whose gradients take fewer passes over memory than those of their parts.

On a CPU, PyTorch computes them operation by operation, and stores what is between. Elsewhere, and
where a graph is compiled or transformed, the parts are left to PyTorch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attention_zoo.precision import autocast_disabled, is_autocast_enabled, upcast
from attention_zoo.tensor_checks import is_eager_cpu, is_transformed

# The square of a length that counts as none: in float32, gradients at zero vectors stay finite.
NO_LENGTH = 1e-20


def allows_custom_gradients(*inputs: Tensor | None) -> bool:
    """Return whether a function may write its results and gradients in place.

    That is so on a CPU, for tensors of one type that autocast leaves alone.
    """
    given = [x for x in inputs if x is not None]
    has_one_type = len({x.dtype for x in given}) == 1
    return has_one_type and is_eager_cpu(given[0]) and not is_autocast_enabled(given[0])


def differentiate(
    formula: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Any],
    of_outputs: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of a formula's inputs, which can be differentiated themselves.

    The first input is a tensor.

    Args:
        formula: computes the outputs of the inputs by operations of PyTorch.
        inputs: its arguments; None for one that is not given.
        of_outputs: the gradients of its outputs; None for an output that is not used.
        needed: which inputs need a gradient.
    """
    with torch.enable_grad(), autocast_disabled(inputs[0]):  # Who calls backward may have it on.
        # Views: one input may be computed from another, whose gradient is that of its own place.
        inputs = [x.view_as(x) if isinstance(x, Tensor) else x for x in inputs]
        outputs = zip(formula(*inputs), of_outputs, strict=True)
        used, of_used = zip(*((x, of_x) for x, of_x in outputs if of_x is not None), strict=True)
        wanted = [x for x, is_needed in zip(inputs, needed, strict=True) if is_needed]
        gradients = torch.autograd.grad(used, wanted, of_used, create_graph=True, allow_unused=True)
    found = iter(gradients)
    return tuple(next(found) if is_needed else None for is_needed in needed)


def needs_formula(*gradients: Tensor | None) -> bool:
    """Return whether a backward pass has to differentiate its formula, by `differentiate`.

    That is so where gradients are to be differentiated themselves, or are a batch of several.
    """
    return torch.is_grad_enabled() or any(is_transformed(x) for x in gradients if x is not None)


def relu_squared(x: Tensor) -> Tensor:
    """Return max(x, 0)²."""
    return ReluSquared.apply(x) if is_eager_cpu(x) else torch.relu(x).square()


def rms_norm(x: Tensor, weight: Tensor | float, epsilon: float) -> Tensor:
    """Return x / √(mean(x²) + ε) · w over the last dimension, for x [… d] and a number or w [d]."""
    has_one_type = isinstance(weight, float) or x.dtype == weight.dtype
    if is_eager_cpu(x) and has_one_type and x.dtype in (torch.float32, torch.float64):
        return RMSNormFunction.apply(x, weight, epsilon)
    if isinstance(weight, float):
        return scale_to_rms(x, weight, epsilon)
    return functional.rms_norm(x, weight.shape, weight, epsilon)


def apply_rms_norm(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """Apply a norm in the type of x, which may be wider than that of the parameters."""
    assert norm.eps is not None
    return rms_norm(x, norm.weight.to(x.dtype), norm.eps)


def unit_vectors(x: Tensor, *, length: float = 1.0, epsilon: float = 1e-6) -> Tensor:
    """Return x / √(|x|² + ε) · length over the last dimension, in float32 at least."""
    width = x.shape[-1]
    return rms_norm(upcast(x), length * width**-0.5, epsilon / width)


def scale_to_rms(x: Tensor, weight: Tensor | float, epsilon: float) -> Tensor:
    """Compute `rms_norm` by operations of PyTorch."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + epsilon) * weight


class ReluSquared(torch.autograd.Function):
    """max(x, 0)², with the gradient 2·max(x, 0)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        positive = torch.relu(x)
        return positive.mul_(positive)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if needs_formula(gradient):
            return 2.0 * torch.relu(x) * gradient
        return torch.relu(x).mul_(gradient).mul_(2.0)


class RMSNormFunction(torch.autograd.Function):
    """n·w with n = x·r and r = 1/√(mean(x²) + ε); the gradient of x is (g·w − n·mean(g·w·n))·r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | float, epsilon: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(epsilon).rsqrt_()
        ctx.number = weight if isinstance(weight, float) else None
        ctx.save_for_backward(x, None if isinstance(weight, float) else weight, scale)
        ctx.epsilon = epsilon
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        if weight is None:
            weight = ctx.number
        if needs_formula(gradient):
            inputs = x, weight, ctx.epsilon
            return differentiate(
                lambda *y: (scale_to_rms(*y),), inputs, (gradient,), ctx.needs_input_grad
            )
        normed = x * scale
        of_elements = gradient * normed
        of_weight = None
        if isinstance(weight, float):
            mean = of_elements.sum(dim=-1, keepdim=True).mul_(weight / x.shape[-1])
        else:
            of_weight = of_elements.sum_to_size(weight.shape)
            with autocast_disabled(x):  # Who calls backward may have it on.
                mean = (of_elements @ weight)[..., None] / x.shape[-1]
        of_x = (gradient * weight).addcmul_(normed, mean, value=-1.0).mul_(scale)
        return of_x, of_weight, None
