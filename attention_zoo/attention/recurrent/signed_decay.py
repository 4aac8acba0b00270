"""Decays of either sign, which turn the sign of a state as well (Grazzi et al. 2024).

With σ_t, the product of the signs of all decays up to t, σ_t S_t is a state whose decays are the
same but positive. It takes in σ_t k_t, and σ_t q_t reads from it what q_t reads from S_t. So what
computes a state with positive decays computes this one too.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from attention_zoo.attention.recurrent.steps import Steps


def extend_decay(decay: Tensor) -> tuple[Tensor, Tensor]:
    """Extend decays d between 0 and 1 to a = 2 d − 1: map log d to log |a| and the sign of a.

    Where a is 0, log |a| has no gradient. A tiny number stands there instead: all that is computed
    is linear in a, so its gradients are those at 0, and its values are the same but for rounding.
    """
    signed = 1.0 + 2.0 * decay.expm1()
    signed = torch.where(signed == 0.0, signed + torch.finfo(signed.dtype).eps ** 2, signed)
    return signed.abs().log(), signed.detach().sign()


def fold_signs(steps: Steps) -> tuple[Steps, Tensor]:
    """Return the steps of the states σ_t S_t, whose decays are positive, and σ [b h t c|1]."""
    assert steps.sign is not None
    signs = steps.sign.cumprod(dim=-2)
    return steps._replace(q=signs * steps.q, k=signs * steps.k, sign=None), signs


def run_signed(
    product: Callable[[Steps, Tensor | None], tuple[Tensor, Tensor]],
    steps: Steps,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute a product of steps, from a state [b h c e] on, whose decays may have signs."""
    if steps.sign is None:
        return product(steps, state)
    positive, signs = fold_signs(steps)
    out, last = product(positive, state)
    return out, signs[..., -1, :, None] * last
