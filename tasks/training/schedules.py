"""Learning-rate schedules: each gives the factor of the peak rate at every optimiser step.

Steps are counted from 1 here: step n is the n-th update, so that the first update is never wasted
on a rate of zero and warm-up ends with the factor 1 at n = warmup_steps. A schedule's shape belongs
to the configuration and its position to the checkpoint: a run resumed with another `total_steps`
follows the new shape from the step where it stands.

`warmup_steps` below 1 is a share of the run, so that one config serves runs of any length.
"""

import math
from collections.abc import Callable
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from attention_zoo.errors import UserError


def constant(optimizer: Optimizer, *, warmup_steps: float, total_steps: float) -> LambdaLR:
    """min(1, n / warmup_steps).

    Args:
        optimizer: its learning rates are the peaks.
        warmup_steps: steps of linear rise from 0; may be 0.
        total_steps: optimiser steps of the run; may be infinite.

    Raises:
        UserError: warm-up is negative or longer than the run.
    """
    warmup_steps = _in_steps(warmup_steps, total_steps)
    return LambdaLR(optimizer, partial(_rise, warmup_steps=warmup_steps))


def inverse_square_root(
    optimizer: Optimizer, *, warmup_steps: float, total_steps: float
) -> LambdaLR:
    """min(n / warmup_steps, sqrt(warmup_steps / n)).

    Vaswani et al. 2017, arXiv:1706.03762, eq. 3, is d^-0.5 min(n^-0.5, n warmup_steps^-1.5); this
    is that value over its peak, (d warmup_steps)^-0.5, so that the optimiser's rate is the peak.

    Args:
        optimizer: its learning rates are the peaks.
        warmup_steps: steps of linear rise, at least 1; they set the pace of the fall as well.
        total_steps: optimiser steps of the run; may be infinite.

    Raises:
        UserError: warm-up is below 1 or longer than the run.
    """
    if warmup_steps == 0:
        raise UserError(
            f"inverse_square_root needs warmup_steps of at least 1, got {warmup_steps}: "
            "they set the pace of its fall."
        )
    warmup_steps = max(1, _in_steps(warmup_steps, total_steps))
    return LambdaLR(optimizer, partial(_inverse_square_root, warmup_steps=warmup_steps))


def linear(
    optimizer: Optimizer, *, warmup_steps: float, total_steps: float, min_lr_ratio: float = 0.0
) -> LambdaLR:
    """Linear rise, then floor + (1 - floor) (1 - p).

    p = (n - 1 - warmup_steps) / (total_steps - warmup_steps): the first step after warm-up has
    the peak too, and the floor is what the step after the last would have.

    Args:
        optimizer: its learning rates are the peaks.
        warmup_steps: steps of linear rise from 0; may be 0.
        total_steps: optimiser steps of the run.
        min_lr_ratio: factor at the end, in [0, 1].

    Raises:
        UserError: warm-up is negative or longer than the run, the run has no end, or the floor lies
            outside [0, 1].
    """
    return _falling(_linear_fall, optimizer, warmup_steps, total_steps, min_lr_ratio)


def cosine(
    optimizer: Optimizer, *, warmup_steps: float, total_steps: float, min_lr_ratio: float = 0.1
) -> LambdaLR:
    """Linear rise, then floor + (1 - floor) (1 + cos(pi p)) / 2, with p as in `linear`.

    Args:
        optimizer: its learning rates are the peaks.
        warmup_steps: steps of linear rise from 0; may be 0.
        total_steps: optimiser steps of the run.
        min_lr_ratio: factor at the end, in [0, 1].

    Raises:
        UserError: warm-up is negative or longer than the run, the run has no end, or the floor lies
            outside [0, 1].

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5, without restarts.
    """
    return _falling(_cosine_fall, optimizer, warmup_steps, total_steps, min_lr_ratio)


def warmup_stable_decay(
    optimizer: Optimizer,
    *,
    warmup_steps: float,
    total_steps: float,
    decay_fraction: float = 0.2,
    decay: str = "sqrt",
    min_lr_ratio: float = 0.0,
) -> LambdaLR:
    """Linear rise, the peak held, then a fall over the last `decay_fraction` of the run.

    With p running from 0 to 1 over the fall, `decay="linear"` is floor + (1 - floor) (1 - p), and
    `decay="sqrt"` is floor + (1 - floor) (1 - sqrt(p)): faster at first, slower at the end.

    Args:
        optimizer: its learning rates are the peaks.
        warmup_steps: steps of linear rise from 0; may be 0.
        total_steps: optimiser steps of the run.
        decay_fraction: share of `total_steps` that falls, in (0, 1].
        decay: "linear" or "sqrt".
        min_lr_ratio: factor at the end, in [0, 1].

    Raises:
        UserError: a value lies outside its range, the run has no end, or warm-up and fall together
            are longer than the run.

    Source: Hu et al. 2024, arXiv:2404.06395 §4 (the schedule); Hägele et al. 2024, arXiv:2405.18392
    §3 (1 - sqrt).
    """
    falls = {"linear": _linear_fall, "sqrt": _sqrt_fall}
    if decay not in falls:
        raise UserError(f"decay must be one of {', '.join(falls)}, got {decay!r}.")
    if not 0 < decay_fraction <= 1:
        raise UserError(f"decay_fraction must lie in (0, 1], got {decay_fraction}.")
    _check_end(total_steps)
    warmup_steps = _in_steps(warmup_steps, total_steps)
    fall_start = total_steps - max(1, round(decay_fraction * total_steps))
    if fall_start < warmup_steps:
        raise UserError(
            f"warm-up and decay must fit into the run, got warmup_steps={warmup_steps} and "
            f"decay_fraction={decay_fraction} of total_steps={total_steps}; shorten one of them."
        )
    return _falling(falls[decay], optimizer, warmup_steps, total_steps, min_lr_ratio, fall_start)


def _falling(
    fall: Callable[[float], float],
    optimizer: Optimizer,
    warmup_steps: float,
    total_steps: float,
    min_lr_ratio: float,
    fall_start: float | None = None,
) -> LambdaLR:
    _check_end(total_steps)
    warmup_steps = _in_steps(warmup_steps, total_steps)
    if not 0 <= min_lr_ratio <= 1:
        raise UserError(
            f"floor must lie in [0, 1], as a factor of the peak rate, got {min_lr_ratio}."
        )
    factor = partial(
        _rise_and_fall,
        warmup_steps=warmup_steps,
        fall_start=warmup_steps if fall_start is None else fall_start,
        total_steps=total_steps,
        min_lr_ratio=min_lr_ratio,
        fall=fall,
    )
    return LambdaLR(optimizer, factor)


# The factors below are module-level functions behind `partial`: they pickle, and LambdaLR keeps
# nothing of them in its state. `done` is the number of steps already taken, n - 1.


def _rise(done: int, *, warmup_steps: int) -> float:
    return min(1.0, (done + 1) / warmup_steps) if warmup_steps else 1.0


def _inverse_square_root(done: int, *, warmup_steps: int) -> float:
    return min((done + 1) / warmup_steps, math.sqrt(warmup_steps / (done + 1)))


def _rise_and_fall(
    done: int,
    *,
    warmup_steps: int,
    fall_start: float,
    total_steps: float,
    min_lr_ratio: float,
    fall: Callable[[float], float],
) -> float:
    if done < fall_start:
        return _rise(done, warmup_steps=warmup_steps)
    progress = min(1.0, (done - fall_start) / max(1.0, total_steps - fall_start))
    return min_lr_ratio + (1 - min_lr_ratio) * fall(progress)


def _linear_fall(progress: float) -> float:
    return 1 - progress


def _sqrt_fall(progress: float) -> float:
    return 1 - math.sqrt(progress)


def _cosine_fall(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def _in_steps(warmup_steps: float, total_steps: float) -> int:
    """Warm-up in steps; below 1 it is a share of the run."""
    if 0 < warmup_steps < 1 and total_steps < math.inf:
        return int(warmup_steps * total_steps)
    if not 0 <= warmup_steps <= total_steps or warmup_steps != int(warmup_steps):
        raise UserError(
            f"warmup_steps must lie between 0 and the steps of the run, got warmup_steps="
            f"{warmup_steps}, total_steps={total_steps}; set schedule.warmup_steps, where a number "
            "below 1 is a share of the run, or train longer."
        )
    return int(warmup_steps)


def _check_end(total_steps: float) -> None:
    if not 1 <= total_steps < math.inf:
        raise UserError(
            f"a schedule that falls needs a run with an end, got total_steps={total_steps}; set "
            "trainer.max_steps or trainer.max_epochs, or choose schedule=inverse_square_root or "
            "schedule=constant."
        )
