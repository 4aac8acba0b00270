"""Functions whose gradients take fewer passes over memory than those of their parts.

On a CPU, PyTorch computes them operation by operation, and stores what is between. Elsewhere, and
where a graph is compiled or transformed, the parts are left to PyTorch.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from attention_zoo.precision import autocast_disabled
from attention_zoo.tensor_checks import is_eager_cpu


def relu_squared(x: Tensor) -> Tensor:
    """Return max(x, 0)²."""
    return ReluSquared.apply(x) if is_eager_cpu(x) else torch.relu(x).square()


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return x / √(mean(x²) + ε) · w over the last dimension, for x [… d] and w [d]."""
    if is_eager_cpu(x) and x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64):
        return RMSNormFunction.apply(x, weight, epsilon)
    return functional.rms_norm(x, weight.shape, weight, epsilon)


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
        if torch.is_grad_enabled():  # The gradient is to be differentiated.
            return 2.0 * torch.relu(x) * gradient
        return torch.relu(x).mul_(gradient).mul_(2.0)


class RMSNormFunction(torch.autograd.Function):
    """n·w with n = x·r and r = 1/√(mean(x²) + ε); the gradient of x is (g·w − n·mean(g·w·n))·r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        ctx.epsilon = epsilon
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # The gradient is to be differentiated.
            y = functional.rms_norm(x, weight.shape, weight, ctx.epsilon)
            of_x, of_weight = torch.autograd.grad(y, [x, weight], gradient, create_graph=True)
            return of_x, of_weight, None
        normed = x * scale
        of_elements = gradient * normed
        with autocast_disabled(x):  # Who calls backward may have it on.
            mean = (of_elements @ weight)[..., None] / x.shape[-1]
        of_x = (gradient * weight).addcmul_(normed, mean, value=-1.0).mul_(scale)
        return of_x, of_elements.sum_to_size(weight.shape), None
