"""Tensors of which each rank has a share."""

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only


def gather_tensors(tree: Any) -> Any:
    """Return nested containers with each DTensor as a whole tensor. All ranks have to call this."""
    return tree_map_only(DTensor, DTensor.full_tensor, tree)


def distribute_like(own: Any, value: Any) -> Any:
    """Return a whole tensor as a share like `own`, if that is one of the same shape."""
    if not (isinstance(own, DTensor) and isinstance(value, Tensor) and own.shape == value.shape):
        return value
    value = value.to(own.device)
    return distribute_tensor(value, own.device_mesh, own.placements)
