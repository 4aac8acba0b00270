"""The delta rule over chunks: what its recurrences and their implied weights are computed by."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_zoo.attention.recurrent.recurrence import CHUNK, sum_after


class Steps(NamedTuple):
    """What becomes of the state S [b h c e] at each token, and how it is read:

        S_t = (I − w_t e_tᵀ) Diag(exp g_t) S_{t−1} + k_t v_tᵀ,   o_t = S_tᵀ q_t

    Decay comes first; what e_t finds is then taken away along w_t. Where `write` is None, the key
    is written along, too (w = k), so that the rule reads

        S_t = S' + k_t (v_t − S'ᵀ e_t)ᵀ,   S' = Diag(exp g_t) S_{t−1}.

    DeltaNet's k is β k̂, and its e is k̂, with a unit vector k̂. Kernels want such a β beside it.
    """

    q: Tensor  # [b h t c]
    k: Tensor  # [b h t c]
    v: Tensor  # [b h t e]
    erase: Tensor  # [b h t c]
    write: Tensor | None = None  # [b h t c]
    decay: Tensor | None = None  # log, [b|1 h|1 t c|1], at most 0; −inf forgets everything
    rate: Tensor | None = None  # β, [b h t 1], where k is β e and there is no other write


def recurrence(steps: Steps, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Read the states [b h t e], going on from a state [b h c e]; return the last one, too.

    Costs grow linearly with the number of tokens.
    """
    if steps.write is None:
        return chunked(steps, state)
    out, state = chunked(in_two(steps), state)
    return out[:, :, 1::2], state


def one_hot(steps: Steps) -> Steps:
    """With unit vectors for values: what is read, [b h t t], are the weights of the values."""
    length = steps.q.shape[2]
    values = torch.eye(length, dtype=steps.q.dtype, device=steps.q.device)
    return steps._replace(v=values.expand(*steps.q.shape[:2], -1, -1))


def masked(steps: Steps, real: Tensor | None, segment_ids: Tensor | None) -> Steps:
    """Steps that leave out what is padded, and forget what is of another segment.

    Args:
        real: [b t] bool, False at padding, which leaves the state as it is.
        segment_ids: [b t], or [b 1+t] with the last number before t in front.
    """
    q, k, v, erase, write, decay, rate = steps
    length = q.shape[2]
    if real is not None:
        kept = real[:, None, :, None]
        k = k * kept
        write = None if write is None else write * kept
        decay = None if decay is None else decay * kept
        rate = None if rate is None else rate * kept
    if segment_ids is not None:
        decay = q.new_zeros(len(q), 1, length, 1) if decay is None else decay
        starts = pad(
            segment_ids[:, 1:] != segment_ids[:, :-1], (length - segment_ids.shape[1] + 1, 0)
        )
        decay = decay.masked_fill(starts[:, None, :, None], float("-inf"))
    return Steps(q, k, v, erase, write, decay, rate)


def chunked(steps: Steps, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Where a key writes along itself: chunks by the WY representation.

    What key i of a chunk writes, n_i, is v_i less what e_i finds, which what the chunk's earlier
    keys write is part of: a triangular system, solved for all chunks at once (Yang et al. 2024,
    arXiv 2406.06484, §3).
    """
    length, width = steps.q.shape[2], steps.v.shape[-1]
    q, k, v, erase, decay = in_chunks(steps)
    scores, overlaps = decayed_products(torch.stack([q, erase]), k, decay)
    since, until = (None, None) if decay is None else (since_start(decay), sum_after(decay))
    solved = torch.linalg.solve_triangular(
        overlaps, torch.cat([v, decayed(erase, since)], dim=-1), upper=False, unitriangular=True
    )
    new, found = solved.split([width, q.shape[-1]], dim=-1)
    parts = decayed(q, since), scores, new, found, decayed(k, until).transpose(-2, -1)
    decays = [None] * q.shape[2] if since is None else since[..., -1, :, None].unbind(dim=2)
    # Unbound: the gradient of an index into all chunks would be as large as all of them.
    chunks = zip(*(part.unbind(dim=2) for part in parts), decays, strict=True)
    state = q.new_zeros(*q.shape[:2], q.shape[-1], width) if state is None else state
    outputs = []
    for q_part, scores_part, new_part, found_part, k_part, whole_decay in chunks:
        written = new_part - found_part @ state
        outputs.append(q_part @ state + scores_part @ written)
        state = decayed(state, whole_decay) + k_part @ written
    return torch.cat(outputs, dim=2)[:, :, :length], state


def in_two(steps: Steps) -> Steps:
    """Each step as two: one that only takes away, then one that only adds."""
    q, k, v, erase, write, decay, _ = steps
    assert write is not None
    nothing = torch.zeros_like(k)
    if decay is not None:
        decay = after_another(decay, torch.zeros_like(decay))
    return Steps(
        after_another(nothing, q),
        after_another(write, k),
        after_another(torch.zeros_like(v), v),
        after_another(erase, nothing),
        decay=decay,
    )


def after_another(first: Tensor, second: Tensor) -> Tensor:
    """[… t c] and [… t c] by turns: [… 2t c]."""
    return torch.stack([first, second], dim=-2).flatten(-3, -2)


def in_chunks(steps: Steps) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """q, k, v, erase and decay [b h n s c], filled up by steps that do nothing.

    The size s of a chunk is a power of two, no larger than the length needs.
    """
    length, size = steps.q.shape[2], 1
    while size < min(length, CHUNK):
        size *= 2
    parts = [
        None if part is None else pad(part, (0, 0, 0, -length % size)).unflatten(2, (-1, size))
        for part in (steps.q, steps.k, steps.v, steps.erase, steps.decay)
    ]
    return tuple(parts)  # type: ignore[return-value]


def decayed_products(rows: Tensor, columns: Tensor, decay: Tensor | None) -> Tensor:
    """Lower triangle of Σ_c x_ic y_jc exp(Σ_{j < m ≤ i} g_mc), for rows x and columns y.

    By halves: what lies between the halves is one product, in which the decay is split where they
    meet. So no exponent is ever positive, and none is a difference of large sums.

    Args:
        rows, columns: [… s c], s a power of two.
        decay: g, log, [… s c|1].

    Returns:
        [… s s].
    """
    size = rows.shape[-2]
    if decay is None:
        return (rows @ columns.transpose(-2, -1)).tril()
    if size == 1:
        return (rows * columns).sum(dim=-1, keepdim=True)
    rows, columns, decay = (part.unflatten(-2, (2, -1)) for part in (rows, columns, decay))
    upper, lower = decayed_products(rows, columns, decay).unbind(dim=-3)
    late = decayed(rows[..., 1, :, :], since_start(decay[..., 1, :, :]))
    early = decayed(columns[..., 0, :, :], sum_after(decay[..., 0, :, :]))
    across = late @ early.transpose(-2, -1)
    return torch.cat([pad(upper, (0, size // 2)), torch.cat([across, lower], dim=-1)], dim=-2)


def decayed(x: Tensor, decay: Tensor | None) -> Tensor:
    return x if decay is None else x * decay.exp()


def since_start(decay: Tensor) -> Tensor:
    """Sums of log decays [… s c] up to each token, itself included."""
    return decay.cumsum(dim=-2)
