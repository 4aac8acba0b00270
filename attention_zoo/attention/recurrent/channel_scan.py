"""The recurrence of a decaying state whose values are single numbers: a vector for each channel."""

import torch
from torch import Tensor

from attention_zoo.attention.recurrent.steps import Steps


def channel_scan(steps: Steps, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compute what `decayed_product` does, for values [b h t 1].

    Each number of a state is then a sum of its own, so nothing is won by products of matrices. All
    chunks take their tokens at the same time, one after the other, and are then put together: each
    number is read a few times, where `decayed_product` reads it at every halving.
    """
    q, k, v, _, _, decay, *_ = steps.split_chunks()
    assert decay is not None
    # Unbound: each index in a loop would have a gradient as large as all tokens.
    local = torch.zeros_like(k[..., 0, :])
    within = []
    tokens = zip(decay.exp().unbind(-2), (k * v).unbind(-2), strict=True)
    for factor, addition in tokens:
        local = factor * local + addition
        within.append(local)
    from_start = decay.cumsum(dim=-2).exp()
    before = torch.zeros_like(local[:, :, 0]) if state is None else state[..., 0]
    starts = []
    for factor, addition in zip(from_start[..., -1, :].unbind(2), local.unbind(2), strict=True):
        starts.append(before)
        before = factor * before + addition
    states = torch.stack(within, dim=-2) + from_start * torch.stack(starts, dim=2)[..., None, :]
    out = (q * states).sum(dim=-1, keepdim=True)
    return out.flatten(2, 3)[:, :, : steps.q.shape[2]], before[..., None]
