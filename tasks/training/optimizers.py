"""Optimisers, each a function of a model: which parameters decay, which are orthogonalised."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.errors import UserError


def adamw(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-9,
) -> torch.optim.AdamW:
    """AdamW over all trainable parameters; only matrices decay.

    Biases, norms, embeddings and every other parameter with a single axis longer than one are left
    undecayed. The fused kernel is used on CPU and CUDA devices.

    Args:
        model: the module whose parameters are trained.
        lr: peak learning rate; a schedule multiplies it.
        weight_decay: decoupled decay, as a factor of the learning rate.
        betas: decay rates of the first and second moments.
        eps: added to the root of the second moment.

    Raises:
        UserError: a value lies outside its range.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; betas and eps of Vaswani et al. 2017,
    arXiv:1706.03762 §5.3.
    """
    _check(lr, weight_decay, betas)
    return _adamw(_decay_groups(model, _trainable(model), weight_decay), lr, betas, eps)


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
    """Muon over the matrices of hidden `nn.Linear` layers, AdamW over everything else.

    Both take the same `lr`: Muon's update is scaled by 0.2 sqrt(max(rows, columns)), which gives it
    the root mean square that AdamW's usually has (Liu et al. 2025, arXiv:2502.16982 §2.2).
    Embeddings, the output head, norms, biases and raw parameters go to AdamW, which decays the
    matrices among them as `adamw` does.

    Args:
        model: the module whose parameters are trained.
        lr: peak learning rate; a schedule multiplies it.
        weight_decay: decoupled decay, as a factor of the learning rate.
        momentum: of Muon's running mean of the gradient.
        betas: AdamW's decay rates of the first and second moments.
        eps: added to the root of AdamW's second moment.
        head: name of the submodule that gives the logits; None where the model has none.

    Raises:
        UserError: a value lies outside its range, no submodule is called `head`, or no matrix is
            left to orthogonalise.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; `torch.optim.Muon`.
    """
    _check(lr, weight_decay, betas)
    if not 0 <= momentum < 1:
        raise UserError(f"momentum must lie in [0, 1), got {momentum}.")
    matrices = _hidden_matrices(model, head)
    if not matrices:
        raise UserError(
            f"muon needs a trainable nn.Linear below the output head; {type(model).__name__} has "
            "none. Choose optimizer=adamw."
        )
    hidden = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in _trainable(model) if id(parameter) not in hidden]
    return MuonWithAdamW(
        torch.optim.Muon(
            matrices,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            adjust_lr_fn="match_rms_adamw",
        ),
        _adamw(_decay_groups(model, others, weight_decay), lr, betas, eps) if others else None,
    )


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimisers that step as one: parameter groups, state and checkpoints are shared.

    The groups are the very dictionaries of both parts, Muon's first, so that a schedule which
    writes `lr` into them reaches the part that reads it.

    Args:
        muon: holds the hidden matrices.
        adamw: holds the other parameters, or None where there are none.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW | None) -> None:
        self.parts: list[torch.optim.Optimizer] = [muon] if adamw is None else [muon, adamw]
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let the parts work on this optimiser's own groups and state."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # load_state_dict comes by here too, with new dictionaries for groups and state.
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step both parts; `closure` computes the loss and its gradients, and is called once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


def _check(lr: float, weight_decay: float, betas: tuple[float, float]) -> None:
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not isinstance(value, int | float):
            raise UserError(f"{name} must be a number, got {value!r}.")
    if not lr > 0:
        raise UserError(f"lr must be above 0, got {lr}.")
    if not weight_decay >= 0:
        raise UserError(f"weight_decay must not be negative, got {weight_decay}.")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"betas must be two numbers in [0, 1), got {list(betas)}.")


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _owned_by(model: nn.Module, *types: type[nn.Module]) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, types):
            yield from module.parameters(recurse=False)


def _is_matrix(parameter: Tensor) -> bool:
    """Whether two axes or more are longer than one: a row of weights is a vector."""
    return sum(size > 1 for size in parameter.shape) >= 2


def _decay_groups(
    model: nn.Module, parameters: list[nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    spared = {
        id(parameter)
        for parameter in _owned_by(model, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
    }
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for parameter in parameters:
        decays = _is_matrix(parameter) and id(parameter) not in spared
        (decayed if decays else undecayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _hidden_matrices(model: nn.Module, head: str | None) -> list[nn.Parameter]:
    outer = {id(parameter) for parameter in _owned_by(model, nn.Embedding)}
    if head is not None:
        modules = dict(model.named_modules())
        if head not in modules:
            raise UserError(
                f"muon leaves the output head to adamw and finds no submodule {head!r} in "
                f"{type(model).__name__}; set optimizer.head to its name, or to null where the "
                "model has none."
            )
        outer |= {id(parameter) for parameter in modules[head].parameters()}
    # A dictionary, so that a matrix shared by two layers counts once.
    hidden = {
        id(parameter): parameter
        for parameter in _owned_by(model, nn.Linear)
        if parameter.requires_grad and parameter.ndim == 2 and _is_matrix(parameter)
    }
    return [parameter for key, parameter in hidden.items() if key not in outer]


def _adamw(
    groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    optimizer = torch.optim.AdamW(
        groups, lr=lr, betas=betas, eps=eps, fused=devices <= {"cpu", "cuda"}
    )
    # The fused kernel offers to unscale gradients itself, whereupon Lightning refuses to clip them
    # under mixed precision, bf16 included. Left to the gradient scaler, both work.
    optimizer._step_supports_amp_scaling = False
    return optimizer
