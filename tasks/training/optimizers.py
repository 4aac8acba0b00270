"""Optimisers: functions that assign a model's parameters to AdamW and Muon.

Both take these arguments, and raise UserError for a value that they cannot take:

    model: the module whose parameters are trained.
    lr: peak learning rate; a schedule multiplies it.
    weight_decay: decoupled decay, as a factor of the learning rate.
    betas: AdamW's decay rates of the first and second moments.
    eps: added to the root of AdamW's second moment.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from attention_zoo.errors import UserError, short_repr
from attention_zoo.factory import typed_options
from attention_zoo.tasks.training.muon import Muon, step_matrices
from attention_zoo.tasks.training.shared_tensors import distribute_like, gather_tensors


@typed_options
def adamw(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-9,
) -> torch.optim.AdamW:
    """Return AdamW over all trainable parameters, with weight decay of matrices only.

    Biases, norms, embeddings and every other parameter with a single axis longer than one do not
    decay, nor do gains and biases of several axes, which a module names in `no_decay`. CPU and CUDA
    devices use the fused kernel.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; betas and eps of Vaswani et al. 2017,
    arXiv:1706.03762 §5.3.
    """
    _check_options(model, lr, weight_decay, betas, eps)
    groups = _adamw_groups(model, weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps)


@typed_options
def muon(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-9,
    head: str | None = "head",
) -> "MuonWithAdamW":
    """Return Muon over the matrices of hidden `nn.Linear` layers and AdamW over everything else.

    Both take the same `lr`: Muon's update is scaled by 0.2 sqrt(max(rows, columns)), which gives it
    the usual root mean square of AdamW's (Liu et al. 2025, arXiv:2502.16982 §2.2). Embeddings, the
    output head, norms, biases and raw parameters go to AdamW, which decays the matrices among them
    as `adamw` does. `momentum` is the decay rate of Muon's running mean of the gradient, and `head`
    the name of the submodule that computes the logits, None if the model has none.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; `torch.optim.Muon`.
    """
    _check_options(model, lr, weight_decay, betas, eps)
    if not 0 <= momentum < 1:
        raise UserError(f"momentum must lie in [0, 1), got {momentum}.")
    matrices = _hidden_matrices(model, head)
    if not matrices:
        raise UserError(
            f"muon needs a trainable nn.Linear below the output head; {type(model).__name__} has "
            "none. Choose optimizer=adamw."
        )
    parts: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=lr, weight_decay=weight_decay, momentum=momentum)
    ]
    if groups := _adamw_groups(model, weight_decay, without=matrices):
        parts.append(torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps))
    return MuonWithAdamW(parts)


class MuonWithAdamW(torch.optim.Optimizer):
    """Optimisers that step as one, with shared parameter groups, state and checkpoints.

    The groups are the same dictionaries as those of the parts, Muon's first, so that a schedule
    that writes `lr` into them reaches the parts. Muon is alone where it has all parameters.
    """

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share_state()

    def _share_state(self) -> None:
        """Give the parts the groups and the state of this optimiser."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # load_state_dict calls this too, with new dictionaries for groups and state.
        super().__setstate__(state)
        self._share_state()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all parts, after one call of `closure`, which computes loss and gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            if isinstance(part, Muon):
                step_whole_matrices(part)
            else:
                part.step()
        return loss


def step_whole_matrices(muon: Muon) -> None:
    """Step Muon; a matrix that ranks share is gathered, since rounding in bfloat16 would differ."""
    if not any(isinstance(x, DTensor) for group in muon.param_groups for x in group["params"]):
        muon.step()
        return
    for group in muon.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            whole, state = parameter.full_tensor(), gather_tensors(dict(muon.state[parameter]))
            step_matrices([whole], [parameter.grad.full_tensor()], [state], group)
            parameter.copy_(distribute_like(parameter, whole))
            muon.state[parameter] = {
                name: distribute_like(parameter, x) for name, x in state.items()
            }


def _check_options(
    model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float], eps: float
) -> None:
    if not isinstance(model, nn.Module):
        raise UserError(
            f"an optimizer takes the module whose parameters it trains, got {short_repr(model)}."
        )
    if not 0 <= eps < math.inf:
        raise UserError(f"eps must be at least 0 and finite, got {eps}.")
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not isinstance(value, int | float):
            raise UserError(f"{name} must be a number, got {value!r}.")
    if not 0 < lr < math.inf:
        raise UserError(f"lr must be above 0 and finite, got {lr}.")
    if not 0 <= weight_decay < math.inf:
        raise UserError(f"weight_decay must be at least 0 and finite, got {weight_decay}.")
    if isinstance(betas, str) or len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"betas must be two numbers in [0, 1), got {short_repr(betas)}.")


def _parameters_of(model: nn.Module, *types: type[nn.Module]) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, types):
            yield from module.parameters(recurse=False)


def _is_matrix(parameter: nn.Parameter) -> bool:
    """Return whether at least two axes are longer than one: a row of weights is a vector."""
    return sum(size > 1 for size in parameter.shape) >= 2


def _hidden_matrices(model: nn.Module, head: str | None) -> list[nn.Parameter]:
    excluded = set(_parameters_of(model, nn.Embedding))
    if head is not None:
        try:
            excluded.update(model.get_submodule(head).parameters())
        except AttributeError:
            raise UserError(
                f"muon leaves the output head to adamw, but {type(model).__name__} has no "
                f"submodule {head!r}; set optimizer.head to its name, or to null if there is none."
            ) from None
    return [
        parameter
        # A dictionary, so that a matrix shared by two layers counts once.
        for parameter in dict.fromkeys(_parameters_of(model, nn.Linear))
        if parameter.requires_grad
        and parameter.ndim == 2
        and _is_matrix(parameter)
        and parameter not in excluded
    ]


def _adamw_groups(
    model: nn.Module, weight_decay: float, without: Sequence[nn.Parameter] = ()
) -> list[dict[str, Any]]:
    """Return the groups with and without weight decay that are not empty."""
    others = set(without)
    parameters = [p for p in model.parameters() if p.requires_grad and p not in others]
    excluded = set(_parameters_of(model, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm))
    for module in model.modules():
        excluded.update(getattr(module, name) for name in getattr(module, "no_decay", ()))
    # `fused` is an option of the groups, not of the optimiser: AdamW(fused=True) unscales gradients
    # itself, so that Lightning refuses to clip them in mixed precision.
    fused = {parameter.device.type for parameter in parameters} <= {"cpu", "cuda"}
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for parameter in parameters:
        decays = _is_matrix(parameter) and parameter not in excluded
        (decay if decays else no_decay).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decay, "weight_decay": weight_decay, "fused": fused},
        {"params": no_decay, "weight_decay": 0.0, "fused": fused},
    ]
    return [group for group in groups if group["params"]]
