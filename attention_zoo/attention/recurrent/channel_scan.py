"""The recurrence of a decaying state whose values are single numbers: a vector for each channel."""

from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.custom_gradients import allows_custom_gradients, differentiate, needs_formula
from attention_zoo.precision import autocast_disabled


def channel_scan(steps: Steps, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compute what `decayed_product` does, for values [b h t 1] and a decay of each channel.

    Each number of a state is then a sum of its own, so nothing is won by products of matrices.
    """
    q, k, v, _, _, decay, *_ = steps
    assert decay is not None
    inputs = q, k, v, decay.expand_as(k), state
    return ChannelScan.apply(*inputs) if allows_custom_gradients(*inputs) else scan_chunks(*inputs)


def scan_chunks(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute `channel_scan` in few operations, on a device that takes long to begin each.

    All chunks take their tokens at the same time, one after the other, and are then put together:
    each number is read a few times, where `decayed_product` reads it at every halving.
    """
    length = q.shape[2]
    # Python loops over the tokens of a chunk: another number of them would be another graph.
    steps = Steps(q, k, v, decay=decay).split_chunks(power_of_two=True)
    q, k, v, _, _, chunk_decay, *_ = steps
    assert chunk_decay is not None
    # Unbound: each index in a loop would have a gradient as large as all tokens.
    local = torch.zeros_like(k[..., 0, :])
    within = []
    tokens = zip(chunk_decay.exp().unbind(-2), (k * v).unbind(-2), strict=True)
    for factor, addition in tokens:
        local = factor * local + addition
        within.append(local)
    from_start = chunk_decay.cumsum(dim=-2).exp()
    before = torch.zeros_like(local[:, :, 0]) if state is None else state[..., 0]
    starts = []
    for factor, addition in zip(from_start[..., -1, :].unbind(2), local.unbind(2), strict=True):
        starts.append(before)
        before = factor * before + addition
    states = torch.stack(within, dim=-2) + from_start * torch.stack(starts, dim=2)[..., None, :]
    out = (q * states).sum(dim=-1, keepdim=True)
    return out.flatten(2, 3)[:, :, :length], before[..., None]


class ChannelScan(torch.autograd.Function):
    """`scan_chunks` token by token, so that a state stays in the processor's cache.

    With a_t = exp decay_t, S_t = a_t ⊙ S_{t−1} + k_t v_t and out_t = Σ_c q_tc S_tc, the gradient of
    S_t is G_t = q_t g_t + a_{t+1} ⊙ G_{t+1}.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        factors = tokens_first(decay).exp_()
        states = factors.new_empty(len(factors) + 1, *factors.shape[1:])
        states[0] = 0.0 if state is None else state[..., 0]
        torch.mul(k.movedim(2, 0), v.movedim(2, 0), out=states[1:])
        for before, after, factor in zip(states, states[1:], factors, strict=False):
            after.addcmul_(factor, before)
        out = (states[1:] * q.movedim(2, 0)).sum(dim=-1, keepdim=True)
        ctx.save_for_backward(q, k, v, decay, state, factors, states)
        return out.movedim(0, 2), states[-1, ..., None].clone()

    @staticmethod
    def backward(ctx: Any, of_out: Tensor, of_last: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, decay, state, factors, states = ctx.saved_tensors
        if needs_formula(of_out, of_last):
            inputs, of_outputs = (q, k, v, decay, state), (of_out, of_last)
            return differentiate(scan_chunks, inputs, of_outputs, ctx.needs_input_grad)
        with autocast_disabled(q):  # Who calls backward may have it on.
            of_out = of_out.movedim(2, 0)
            of_states = torch.empty_like(factors)
            torch.mul(of_out, q.movedim(2, 0), out=of_states)
            of_states[-1] += of_last[..., 0]
            for t in reversed(range(len(factors) - 1)):
                of_states[t].addcmul_(factors[t + 1], of_states[t + 1])
            of_q = of_out * states[1:]
            of_k = of_states * v.movedim(2, 0)
            of_v = (of_states * k.movedim(2, 0)).sum(dim=-1, keepdim=True)
            of_state = None if state is None else (factors[0] * of_states[0])[..., None]
            of_decay = of_states.mul_(factors).mul_(states[:-1])
            return *(x.movedim(0, 2) for x in (of_q, of_k, of_v, of_decay)), of_state


def tokens_first(x: Tensor) -> Tensor:
    """Return a copy of x [b h t c] as [t b h c], so that all numbers of a token are together."""
    return x.movedim(2, 0).clone(memory_format=torch.contiguous_format)
