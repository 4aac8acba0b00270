"""Checks of the tensors that a caller hands in: each refusal is one line."""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from attention_zoo.errors import UserError
from attention_zoo.precision import is_autocast_enabled


def check_key_mask(key_mask: Tensor, name: str = "key_mask") -> None:
    """Refuse what is not [b k] bool: numbers would be added to scores, or be taken for columns."""
    if not isinstance(key_mask, Tensor):
        raise UserError(f"{name} must be a tensor [b k] bool, got {describe(key_mask)}.")
    if key_mask.dtype != torch.bool:
        raise UserError(
            f"{name} must be boolean, True at real keys and False at padding, got "
            f"{key_mask.dtype}. Convert a 0/1 mask in which 1 is a real key by mask.bool()."
        )
    if key_mask.ndim != 2:
        raise UserError(f"{name} must have the shape [b k], got {list(key_mask.shape)}.")


def check_integers(x: Tensor, name: str, shape: str) -> None:
    """Refuse what is not a tensor of integers with two axes."""
    if not isinstance(x, Tensor):
        raise UserError(f"{name} must be a tensor {shape} of integers, got {describe(x)}.")
    if x.is_floating_point() or x.is_complex():
        raise UserError(f"{name} must be integers, got {x.dtype}. Convert them by .long().")
    if x.ndim != 2:
        raise UserError(f"{name} must have the shape {shape}, got {list(x.shape)}.")


def is_readable(x: Tensor) -> bool:
    """Return whether Python can look at the values of a tensor.

    While a graph is compiled, on the meta device and under a transform of torch.func it cannot.
    """
    return not (torch.compiler.is_compiling() or x.is_meta or is_transformed(x))


def is_eager_cpu(x: Tensor) -> bool:
    """Return whether operations on x run one by one on a CPU, without derivatives forward."""
    return x.device.type == "cpu" and is_readable(x) and forward_ad._current_level < 0


def is_transformed(x: Tensor) -> bool:
    """Return whether a transform of torch.func works on a tensor, such as vmap or grad.

    A batch of gradients, as by `torch.autograd.grad(…, is_grads_batched=True)`, is one as well.
    """
    if torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(x) or functorch.is_legacy_batchedtensor(x)


def describe(x: object) -> str:
    """Return what an argument is, for a refusal: a tensor by its type, others by their class."""
    return f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__


def check_features(x: Tensor, name: str, dim: int) -> None:
    """Refuse what is not a tensor [b t d] of floating-point numbers of the width d."""
    if not isinstance(x, Tensor):
        raise UserError(f"{name} must be a tensor [b t d], got {describe(x)}.")
    if x.ndim != 3 or x.shape[2] != dim:
        raise UserError(f"{name} must have the shape [b t d] with d={dim}, got {list(x.shape)}.")
    if not x.is_floating_point():
        raise UserError(f"{name} must be floating-point numbers, got {x.dtype}.")


def check_matches_weights(x: Tensor, name: str, module: nn.Module) -> None:
    """Refuse inputs of another device than the module's weights, or without autocast another type.

    Weights that are no floating-point numbers, such as quantised ones, take what they like.
    """
    weight = first_parameter(module)
    if weight is None or not weight.is_floating_point():
        return
    if x.device != weight.device:
        raise UserError(
            f"{name} is on {x.device} and the weights are on {weight.device}. Move one to the "
            "other by .to()."
        )
    types = {x.dtype} if x.dtype == weight.dtype else {part.dtype for part in module.parameters()}
    if x.dtype not in types and not is_autocast_enabled(x):
        raise UserError(
            f"{name} is {x.dtype} and the weights are {weight.dtype}. Convert one to the other by "
            ".to(), or run under torch.autocast."
        )


def first_parameter(module: nn.Module) -> nn.Parameter | None:
    """Return the first of a module's parameters, without the names that `parameters` makes."""
    own = (x for x in module._parameters.values() if x is not None)
    of_parts = (first_parameter(x) for x in module._modules.values() if x is not None)
    first = next(own, None)
    return next((x for x in of_parts if x is not None), None) if first is None else first


def check_positions(positions: Tensor, x: Tensor) -> None:
    """Refuse what are not positions [b|1 t] of the tokens x [b t …]."""
    check_integers(positions, "positions", "[b|1 t]")
    if positions.dtype == torch.bool:
        raise UserError("positions must be integers, got a mask (torch.bool).")
    if positions.shape[1] != x.shape[1] or len(positions) not in (1, len(x)):
        raise UserError(
            f"positions must be [b|1 t], one for each of the tokens {list(x.shape[:2])}, got "
            f"{list(positions.shape)}."
        )
    check_device(positions, "positions", x)


def check_device(part: Tensor, name: str, x: Tensor) -> None:
    """Refuse a tensor on another device than the inputs."""
    if part.device != x.device:
        raise UserError(
            f"{name} must be on the device of the inputs, {x.device}, got {part.device}. Move it "
            "by .to()."
        )


def check_tokens(tokens: Tensor, name: str, vocabulary_size: int) -> None:
    """Refuse what are not tokens [b t] of a vocabulary."""
    check_integers(tokens, name, "[b t]")
    check_range(tokens, name, vocabulary_size)


def check_indices(indices: Tensor, name: str, x: Tensor) -> None:
    """Refuse what are not indices [b a] of the tokens of x [b t d]."""
    check_integers(indices, name, "[b a]")
    if len(indices) != len(x):
        raise UserError(
            f"{name} must have a row for each of {len(x)} sequences, got {len(indices)}."
        )
    check_range(indices, name, x.shape[1])


def check_range(numbers: Tensor, name: str, count: int) -> None:
    """Refuse a mask, narrow integers, and numbers that are not from 0 to count − 1.

    PyTorch looks up by integers of 32 or 64 bits alone.

    Values are looked at on a CPU alone: elsewhere they would have to be waited for.
    """
    if numbers.dtype == torch.bool:
        raise UserError(f"{name} must be integers, got a mask (torch.bool).")
    if numbers.dtype not in (torch.int32, torch.int64):
        raise UserError(
            f"{name} must be integers of 32 or 64 bits, got {numbers.dtype}. Convert them by "
            ".long()."
        )
    if is_readable(numbers) and numbers.device.type == "cpu" and numbers.numel():
        for end in map(int, numbers.aminmax()):
            if not 0 <= end < count:
                raise UserError(f"{name} must be from 0 to {count - 1}, got {end}.")
