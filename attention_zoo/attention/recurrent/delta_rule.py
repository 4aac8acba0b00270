"""Attention by a state that the delta rule updates, computed in chunks."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_zoo.attention.recurrent import kernels
from attention_zoo.attention.recurrent.base import RecurrentAttention
from attention_zoo.attention.recurrent.steps import Steps, sum_after
from attention_zoo.masks import TokenSpan


class DeltaRuleAttention(RecurrentAttention):
    """Recurrent attention whose state erases what a key reads before it adds a value.

    A variant overrides `project_steps`, `project_output` and `naive`. All that leads to the state
    is in float32 at least.
    """

    def recurrence(self, steps: Steps, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return (kernels.delta_rule if self.backend == "fla" else delta_rule)(steps, state)

    def implied_weights(self, steps: Steps, x: Tensor, span: TokenSpan) -> Tensor:
        """Compute what each token would read if values were unit vectors."""
        return self.recurrence(steps.use_unit_values().apply_mask(span), None)[0]


def unit_vectors(x: Tensor) -> Tensor:
    """Scale vectors [… c] to the length 1; zeros stay zeros."""
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-6)


def delta_rule(steps: Steps, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compute S_tᵀ q_t [b h t e] of the steps, and the last state [b h c e].

    The state before them is None for zeros. Work grows with the length.
    """
    if steps.write is None:
        return chunked_delta_rule(steps, state)
    out, state = chunked_delta_rule(split_steps(steps), state)
    return out[:, :, 1::2], state


def chunked_delta_rule(
    steps: Steps, state: Tensor | None, *, erase_first: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute `delta_rule` for keys that write along themselves, by the WY representation.

    Key i of a chunk writes v_i minus what e_i reads, which depends on what earlier keys write. This
    is a triangular system, solved for all chunks at once (Yang et al. 2024, arXiv 2406.06484, §3).

    If `erase_first`, e_t reads the state before it decays:

        S_t = Diag(exp g_t) S_{t−1} + k_t (v_t − S_{t−1}ᵀ e_t)ᵀ

    and nothing where the decay forgets everything, as it does at the start of a segment.
    """
    q, k, v, erase, _, decay, *_ = steps.split_chunks()
    assert erase is not None
    from_start, to_end = (None, None) if decay is None else (decay.cumsum(-2), sum_after(decay))
    to_erase = from_start
    if erase_first and decay is not None and from_start is not None:
        erase = erase.masked_fill(decay.isneginf(), 0.0)
        # Up to the token before: so is the decay of that token's row.
        to_erase = pad(from_start[..., :-1, :], (0, 0, 1, 0))
        rows = pad(erase[..., 1:, :], (0, 0, 0, 1))
        scores, overlaps = decayed_scores(torch.stack([q, rows]), k, decay)
        overlaps = pad(overlaps[..., :-1, :], (0, 0, 1, 0))
    else:
        scores, overlaps = decayed_scores(torch.stack([q, erase]), k, decay)
    solution = torch.linalg.solve_triangular(
        overlaps,
        torch.cat([v, apply_decay(erase, to_erase)], dim=-1),
        upper=False,
        unitriangular=True,
    )
    values, readers = solution.split([v.shape[-1], q.shape[-1]], dim=-1)
    keys = apply_decay(k, to_end).transpose(-2, -1)
    parts = apply_decay(q, from_start), scores, values, readers, keys
    decays = (
        [None] * q.shape[2] if from_start is None else from_start[..., -1, :, None].unbind(dim=2)
    )
    # Unbound: the gradient of an index into all chunks would be as large as all of them.
    chunks = zip(*(part.unbind(dim=2) for part in parts), decays, strict=True)
    state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]) if state is None else state
    outputs = []
    for q_part, scores_part, values_part, readers_part, keys_part, chunk_decay in chunks:
        written = values_part - readers_part @ state
        outputs.append(q_part @ state + scores_part @ written)
        state = apply_decay(state, chunk_decay) + keys_part @ written
    return torch.cat(outputs, dim=2)[:, :, : steps.q.shape[2]], state


def split_steps(steps: Steps) -> Steps:
    """Split each step into two: one that only erases, then one that only adds."""
    q, k, v, erase, write, decay, *_ = steps
    assert erase is not None and write is not None
    zeros = torch.zeros_like(k)
    if decay is not None:
        decay = interleave(decay, torch.zeros_like(decay))
    pairs = (zeros, q), (write, k), (torch.zeros_like(v), v), (erase, zeros)
    q, k, v, erase = (interleave(*pair) for pair in pairs)
    return Steps(q, k, v, erase, decay=decay)


def interleave(first: Tensor, second: Tensor) -> Tensor:
    """Interleave the tokens of [… t c] and [… t c]: [… 2t c]."""
    return torch.stack([first, second], dim=-2).flatten(-3, -2)


def decayed_scores(rows: Tensor, columns: Tensor, decay: Tensor | None) -> Tensor:
    """Compute the lower triangle [… s s] of Σ_c x_ic y_jc exp(Σ_{j < m ≤ i} g_mc).

    The rows x and the columns y are [… s c], and the log decay g is [… s c|1]; s is a power of two.
    The scores between the two halves of the tokens are one product, in which the decay is split
    where the halves meet. So no exponent is ever positive, and none is a difference of large sums.
    """
    size = rows.shape[-2]
    if decay is None:
        return (rows @ columns.transpose(-2, -1)).tril()
    if size == 1:
        return (rows * columns).sum(dim=-1, keepdim=True)
    rows, columns, decay = (part.unflatten(-2, (2, -1)) for part in (rows, columns, decay))
    upper, lower = decayed_scores(rows, columns, decay).unbind(dim=-3)
    late = apply_decay(rows[..., 1, :, :], decay[..., 1, :, :].cumsum(dim=-2))
    early = apply_decay(columns[..., 0, :, :], sum_after(decay[..., 0, :, :]))
    across = late @ early.transpose(-2, -1)
    return torch.cat([pad(upper, (0, size // 2)), torch.cat([across, lower], dim=-1)], dim=-2)


def apply_decay(x: Tensor, decay: Tensor | None) -> Tensor:
    """Multiply x by the exponential of a log decay, if there is one."""
    return x if decay is None else x * decay.exp()
