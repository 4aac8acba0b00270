"""Learning-rate schedules: the factor of the peak rate at every optimiser step.

Steps count from 1 in the formulae: step n is the n-th update. So the first update has a rate above
0, and warm-up ends with the factor 1 at n = warmup_steps. A schedule's shape comes from the config
and its step from the checkpoint: a run resumed with another `total_steps` follows the new shape
from its step.

All schedules take these arguments, and raise UserError for a value that they cannot take:

    optimizer: its learning rates are the peaks.
    warmup_steps: steps of linear warm-up, at most total_steps; 0 for none. Below 1 it is a share of
        the run, so that one config serves runs of any length.
    total_steps: optimiser steps of the run; infinite for `constant` and `inverse_square_root` only.
    min_lr_ratio: the factor at the end of the others, in [0, 1].
"""

import math
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from attention_zoo.errors import UserError, short_repr

# From 1 to 0 as the progress of the decay goes from 0 to 1.
DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "sqrt": lambda progress: 1 - math.sqrt(progress),
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}


def constant(optimizer: Optimizer, *, warmup_steps: float, total_steps: float) -> LambdaLR:
    """Return the schedule min(1, n / warmup_steps)."""
    warmup_steps = _in_steps(warmup_steps, total_steps)
    return LambdaLR(optimizer, partial(_warmup, warmup_steps=warmup_steps))


def inverse_square_root(
    optimizer: Optimizer, *, warmup_steps: float, total_steps: float
) -> LambdaLR:
    """Return the schedule min(n / warmup_steps, sqrt(warmup_steps / n)), with warmup_steps above 0.

    Vaswani et al. 2017, arXiv:1706.03762, eq. 3, is d^-0.5 min(n^-0.5, n warmup_steps^-1.5). This
    is that value divided by its peak, (d warmup_steps)^-0.5: the optimiser's rate is the peak.
    """
    _check_numbers(warmup_steps=warmup_steps)
    if warmup_steps == 0:
        raise UserError(
            f"inverse_square_root needs warmup_steps of at least 1, got {warmup_steps}: "
            "they set the pace of its decay."
        )
    warmup_steps = max(1, _in_steps(warmup_steps, total_steps))
    return LambdaLR(optimizer, partial(_inverse_square_root, warmup_steps=warmup_steps))


def linear(
    optimizer: Optimizer, *, warmup_steps: float, total_steps: float, min_lr_ratio: float = 0.0
) -> LambdaLR:
    """Return linear warm-up, then m + (1 - m) (1 - p), where m is min_lr_ratio.

    p = (n - 1 - warmup_steps) / (total_steps - warmup_steps): the first step after warm-up has
    the peak too, and the step after the last would have m.
    """
    return _decaying("linear", optimizer, warmup_steps, total_steps, min_lr_ratio)


def cosine(
    optimizer: Optimizer, *, warmup_steps: float, total_steps: float, min_lr_ratio: float = 0.1
) -> LambdaLR:
    """Return linear warm-up, then m + (1 - m) (1 + cos(pi p)) / 2, with m and p as in `linear`.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5, without restarts.
    """
    return _decaying("cosine", optimizer, warmup_steps, total_steps, min_lr_ratio)


def warmup_stable_decay(
    optimizer: Optimizer,
    *,
    warmup_steps: float,
    total_steps: float,
    decay_fraction: float = 0.2,
    decay: str = "sqrt",
    min_lr_ratio: float = 0.0,
) -> LambdaLR:
    """Return linear warm-up, the peak, then a decay over the last `decay_fraction` of the run.

    With p from 0 to 1 over the decay and m = min_lr_ratio, `decay="linear"` is m + (1 - m) (1 - p),
    and `decay="sqrt"` is m + (1 - m) (1 - sqrt(p)): faster at first, slower at the end.

    Source: Hu et al. 2024, arXiv:2404.06395 §4 (the schedule); Hägele et al. 2024, arXiv:2405.18392
    §3 (1 - sqrt).
    """
    if decay not in ("linear", "sqrt"):
        raise UserError(f"decay must be one of linear, sqrt, got {decay!r}.")
    if not 0 < decay_fraction <= 1:
        raise UserError(f"decay_fraction must lie in (0, 1], got {decay_fraction}.")
    return _decaying(decay, optimizer, warmup_steps, total_steps, min_lr_ratio, decay_fraction)


def _decaying(
    decay: str,
    optimizer: Optimizer,
    warmup_steps: float,
    total_steps: float,
    min_lr_ratio: float,
    decay_fraction: float | None = None,
) -> LambdaLR:
    """Return a schedule with a decay at the end of the run, by default from the end of warm-up."""
    _check_numbers(total_steps=total_steps, min_lr_ratio=min_lr_ratio)
    if not 1 <= total_steps < math.inf:
        raise UserError(
            f"a schedule with a decay needs a run with an end, got total_steps={total_steps}; set "
            "trainer.max_steps or trainer.max_epochs, or choose schedule=inverse_square_root or "
            "schedule=constant."
        )
    warmup_steps = _in_steps(warmup_steps, total_steps)
    decay_start: float = warmup_steps
    if decay_fraction is not None:
        decay_start = total_steps - max(1, round(decay_fraction * total_steps))
    if decay_start < warmup_steps:
        raise UserError(
            f"warm-up and decay must fit into the run, got warmup_steps={warmup_steps} and "
            f"decay_fraction={decay_fraction} of total_steps={total_steps}; shorten one of them."
        )
    if not 0 <= min_lr_ratio <= 1:
        raise UserError(
            f"min_lr_ratio must lie in [0, 1], as a factor of the peak rate, got {min_lr_ratio}."
        )
    factor = partial(
        _warmup_and_decay,
        warmup_steps=warmup_steps,
        decay_start=decay_start,
        total_steps=total_steps,
        min_lr_ratio=min_lr_ratio,
        decay=decay,
    )
    return LambdaLR(optimizer, factor)


# The factors below are module-level functions, so that they pickle and that LambdaLR keeps nothing
# of them in its state. `step` counts from 0: it is n - 1.


def _warmup(step: int, *, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def _inverse_square_root(step: int, *, warmup_steps: int) -> float:
    return min((step + 1) / warmup_steps, math.sqrt(warmup_steps / (step + 1)))


def _warmup_and_decay(
    step: int,
    *,
    warmup_steps: int,
    decay_start: float,
    total_steps: float,
    min_lr_ratio: float,
    decay: str,
) -> float:
    if step < decay_start:
        return _warmup(step, warmup_steps=warmup_steps)
    progress = min(1.0, (step - decay_start) / max(1.0, total_steps - decay_start))
    return min_lr_ratio + (1 - min_lr_ratio) * DECAYS[decay](progress)


def _in_steps(warmup_steps: float, total_steps: float) -> int:
    """Return the number of warm-up steps; a number below 1 is a share of the run."""
    _check_numbers(warmup_steps=warmup_steps, total_steps=total_steps)
    if 0 < warmup_steps < 1 and total_steps < math.inf:
        return int(warmup_steps * total_steps)
    if not 0 <= warmup_steps <= total_steps or warmup_steps != int(warmup_steps):
        raise UserError(
            f"warmup_steps must lie between 0 and the steps of the run, got warmup_steps="
            f"{warmup_steps}, total_steps={total_steps}; set schedule.warmup_steps, where a number "
            "below 1 is a share of the run, or train longer."
        )
    return int(warmup_steps)


def _check_numbers(**options: Any) -> None:
    """Refuse options that are no numbers; those without an end are for others to refuse."""
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise UserError(f"{name} must be a number, got {short_repr(value)}.")
