"""The product q_t S_t of queries with a state that decays, S_t = diag(a_t) S_{t−1} + k_tᵀ v_t."""

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.recurrent.chunk_decay import LOG_ZERO, decay_chunks, decay_triangle
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.custom_gradients import allows_custom_gradients, differentiate, needs_formula
from attention_zoo.precision import autocast_disabled


def decayed_product(steps: Steps, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compute q_t S_t for S_t = diag(a_t) S_{t−1} + k_tᵀ v_t.

        out_i = Σ_{j ≤ i} (Σ_c q_ic k_jc Π_{j < m ≤ i} a_mc) v_j

    The steps have a decay log a, [b|1 h|1 t c|1], or none. The state [b h c e] is S before the
    first token, or None for zeros; that after the last token is returned with the outputs
    [b h t e]. Work and memory grow with the length. Sums are in the type of the arguments.
    """
    q, k, v, _, _, decay, *_ = steps.split_chunks()
    by_head = decay is None or decay.shape[-1] == 1
    if by_head and allows_custom_gradients(q, k, v, decay, state):
        out, state = DecayedProduct.apply(q, k, v, decay, state)
    else:
        out, state = multiply_chunks(q, k, v, decay, state)
    return out.flatten(2, 3)[:, :, : steps.q.shape[2]], state


def multiply_chunks(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute `decayed_product` of parts in chunks [b h n s c]; the outputs are in chunks, too."""
    scores, rows, columns, total = decay_chunks(q, k, decay)
    decays = repeat(1.0) if total is None else total.unbind(2)
    # Unbound: each index in a loop would have a gradient as large as all chunks.
    parts = scores @ v, rows, columns.mT @ v
    outputs = []
    for within, reads, addition, state_decay in zip(
        *(x.unbind(2) for x in parts), decays, strict=False
    ):
        if state is None:
            outputs.append(within)
            state = addition
        else:
            outputs.append(within + reads @ state)
            state = addition + state_decay * state
    assert state is not None
    return torch.stack(outputs, dim=2), state


class DecayedProduct(torch.autograd.Function):
    """`multiply_chunks` for a decay of each head, or none, with fewer passes over memory.

    In a chunk, with T_ij = Π_{j < m ≤ i} a_m, f_i = Π_{m ≤ i} a_m, t_j = Π_{m > j} a_m (the last
    row of T) and the state X before the chunk,

        out = (q kᵀ ⊙ T) v + f ⊙ q X,   X' = Π_m a_m X + kᵀ (t ⊙ v).

    A sequence of one chunk that starts with zeros has no X.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        scores = q @ k.mT
        if decay is None:
            scores.tril_()
            triangle = from_start = None
            additions = k.mT @ v
        else:
            triangle = decay_triangle(decay)
            from_start = decay.clamp(min=LOG_ZERO).cumsum(dim=-2).exp_()
            scores *= triangle
            additions = k.mT @ (v * triangle[..., -1, :, None])
        if state is None and q.shape[2] == 1:
            out, states, last = scores @ v, None, additions[:, :, 0]
        else:
            states, last = scan_states(additions, from_start, state)
            reads = q @ states
            out = add_product(reads if from_start is None else reads.mul_(from_start), scores, v)
        ctx.save_for_backward(q, k, v, decay, state, scores, triangle, from_start, states)
        return out, last

    @staticmethod
    def backward(ctx: Any, *of_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # Read once: checkpointing keeps them for one reading.
        inputs = saved[:5]
        if needs_formula(*of_outputs):
            return differentiate(multiply_chunks, inputs, of_outputs, ctx.needs_input_grad)
        with autocast_disabled(inputs[0]):  # Who calls backward may have it on.
            return compute_gradients(*saved, *of_outputs)


def compute_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    state: Tensor | None,
    scores: Tensor,
    triangle: Tensor | None,
    from_start: Tensor | None,
    states: Tensor | None,
    of_out: Tensor | None,
    of_last: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of q, k, v, the decay and the state, from what `forward` has saved."""
    if of_out is None:
        of_out = torch.zeros_like(v)
    # The gradient of a factor times the factor is that of the sum in its exponent.
    of_q = of_state = of_from_start = None
    if states is None:
        of_additions = None if of_last is None else of_last[:, :, None]
    else:
        of_reads = of_out if from_start is None else of_out * from_start
        of_additions, of_state = scan_gradients(q.mT @ of_reads, from_start, of_last)
        of_q = of_reads @ states.mT
        if from_start is not None:
            of_from_start = (of_q * q).sum(dim=-1)
            of_total = (of_additions * states).sum(dim=(-2, -1))
            of_from_start[..., -1] += of_total * from_start[..., -1, 0]
    of_scores = of_out @ v.mT
    of_triangle = None if decay is None else of_scores * scores
    of_k = of_v = None
    if of_additions is not None:
        to_end = 1.0 if triangle is None else triangle[..., -1, :, None]
        of_k, of_v = (v * to_end) @ of_additions.mT, (k @ of_additions) * to_end
        if of_triangle is not None:
            of_triangle[..., -1, :] += (of_k * k).sum(dim=-1)
    of_scores = of_scores.tril_() if triangle is None else of_scores.mul_(triangle)
    of_decay = None
    if decay is not None and decay.requires_grad:
        assert of_triangle is not None
        of_decay = sum_exponents(of_triangle, of_from_start)
        of_decay = of_decay.masked_fill_(decay < LOG_ZERO, 0.0).sum_to_size(decay.shape)
    return (
        add_product(of_q, of_scores, k),
        add_product(of_k, of_scores.mT, q),
        add_product(of_v, scores.mT, of_out),
        of_decay,
        None if state is None else of_state,
    )


def scan_states(
    additions: Tensor, from_start: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the states [b h n c e] before each chunk, and that after the last.

    Chunks add [b h n c e] to the state, and decay it by the last factor of `from_start` [… n s 1].
    """
    before, last = torch.empty_like(additions), torch.empty_like(additions[:, :, 0])
    before[:, :, 0] = 0.0 if state is None else state
    states = [*before.unbind(2), last]
    advance(states, additions.unbind(2), chunk_totals(from_start))
    return before, last


def scan_gradients(
    of_reads: Tensor, from_start: Tensor | None, of_last: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the gradients [b h n c e] of the states after each chunk, and that before the first.

    `of_reads` are those by which the queries of a chunk read its state.
    """
    after, first = torch.empty_like(of_reads), torch.empty_like(of_reads[:, :, 0])
    after[:, :, -1] = 0.0 if of_last is None else of_last
    states = [*reversed(after.unbind(2)), first]
    advance(states, of_reads.unbind(2)[::-1], chunk_totals(from_start)[::-1])
    return after, first


def chunk_totals(from_start: Tensor | None) -> tuple[Tensor, ...]:
    """Return what each chunk leaves of a state, [b|1 h|1 1 1]; nothing without decay."""
    return () if from_start is None else from_start[..., -1:, :].unbind(2)


def advance(
    states: Sequence[Tensor], additions: Sequence[Tensor], totals: Sequence[Tensor]
) -> None:
    """Write all states [b h c e] after the first: an addition to what is left of the one before."""
    for i, addition in enumerate(additions):
        if totals:
            torch.addcmul(addition, totals[i], states[i], out=states[i + 1])
        else:
            torch.add(addition, states[i], out=states[i + 1])


def add_product(total: Tensor | None, x: Tensor, y: Tensor) -> Tensor:
    """Add the product of matrices x and y [… m n] to a total, in place, if there is one."""
    if total is None:
        return x @ y
    total.flatten(0, 2).baddbmm_(x.flatten(0, 2), y.flatten(0, 2))
    return total


def sum_exponents(of_triangle: Tensor, of_from_start: Tensor | None) -> Tensor:
    """Return the gradient [… s 1] of decays from those of the sums in exponents.

    These are Σ_{j < m ≤ i} log a_m [… s s], and Σ_{m ≤ i} log a_m [… s], whose gradients are those
    of a column before the first. No terms cancel, as they would in a difference of two sums.
    """
    size = of_triangle.shape[-1]
    ones = torch.ones(size, size, dtype=of_triangle.dtype)
    # By i ≥ m: Σ of the gradients of column j, for j < m.
    later = (ones.triu() @ of_triangle).mul_(ones.tril(-1)).sum(dim=-1, keepdim=True)
    if of_from_start is not None:
        later += ones.triu() @ of_from_start[..., None]
    return later
