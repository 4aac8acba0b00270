"""Find the layer in which a training step stops being finite."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.attention.base import take_auxiliary_loss
from attention_zoo.tasks.training.shared_tensors import gather_tensors

# What a task does at such a step: it ends the training, it leaves the weights as they are, or it
# goes on as if nothing had happened.
RESPONSES = ("stop", "skip", "continue")
MAX_SKIPPED_IN_A_ROW = 10  # steps; after them nothing can be expected of the next


def explain_non_finite(model: nn.Module, forwards: Sequence[Callable[[], Any]]) -> str:
    """Return where a step stops being finite: in which layer's output or parameter's gradient.

    `forwards` repeat the passes of the step, with other masks of dropout.
    """
    # All of it on every rank, as ranks that share the model compute together.
    layers = [find_output(model, forward) for forward in forwards]
    parameter = find_gradient(model)
    for layer in filter(None, layers):
        return f"the output of {layer} is not finite"
    if parameter:
        return f"the gradient of {parameter} is not finite"
    return "the loss or the norm of the gradients is not finite, or a gradient of another process"


def find_output(model: nn.Module, forward: Callable[[], Any]) -> str | None:
    """Return the innermost module that first gives a value that is not finite in `forward`."""
    names = {module: name for name, module in model.named_modules()}
    found: list[str] = []

    def check(module: nn.Module, _: Any, output: Any) -> None:
        if not found and isinstance(output, Tensor) and not output.isfinite().all():
            found.append(names[module])

    handles = [module.register_forward_hook(check) for module in names]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
        take_auxiliary_loss(model)
    return found[0] if found else None


def find_gradient(model: nn.Module) -> str | None:
    """Return the last parameter, in the order of the model, whose gradient is not finite.

    Backpropagation goes from the last layer to the first, so that is where it began.
    """
    names = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not gather_tensors(parameter.grad).isfinite().all()
    ]
    return names[-1] if names else None
