"""Attention by a state that the delta rule updates, computed in chunks."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_zoo.attention.recurrent import kernels
from attention_zoo.attention.recurrent.base import RecurrentAttention
from attention_zoo.attention.recurrent.chunk_decay import decay_chunks
from attention_zoo.attention.recurrent.steps import Steps
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


def delta_rule(
    steps: Steps, state: Tensor | None = None, *, erase_first: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute S_tᵀ q_t [b h t e] of the steps, and the last state [b h c e], in chunks.

    The state before them is None for zeros. Work grows with the length.

    What e_i reads depends on what earlier tokens of its chunk erase. This is a triangular system,
    solved for all chunks at once: the WY representation (Yang et al. 2024, arXiv 2406.06484, §3).

    If `erase_first`, for keys that write along themselves, e_t reads the state before it decays:

        S_t = Diag(exp g_t) S_{t−1} + k_t (v_t − S_{t−1}ᵀ e_t)ᵀ

    and nothing where the decay forgets everything, as it does at the start of a segment.
    """
    q, k, v, erase, write, decay, *_ = steps.split_chunks()
    assert erase is not None and (write is None or not erase_first)
    if erase_first and decay is not None:
        # What a token erases decays up to the token before it: in that token's row.
        erase = erase.masked_fill(decay.isneginf(), 0.0)
        first, erase = erase[..., :1, :], pad(erase[..., 1:, :], (0, 0, 0, 1))
    rows = torch.stack([q, erase])
    if write is None:
        (scores, overlaps), (reads, readers), keys, total = decay_chunks(rows, k, decay)
        within, additions, changes = None, None, v
    else:
        # Rows and columns of both kinds meet.
        products, decayed_rows, columns, total = decay_chunks(
            rows[:, None], torch.stack([k, write]), decay
        )
        (of_keys, scores), (erased_keys, overlaps) = products.unbind(0)
        (reads, readers), (keys, writes) = decayed_rows[:, 0], columns
        within, additions = of_keys @ v, keys.mT @ v
        keys, changes = writes, -(erased_keys.tril(-1) @ v)
    if erase_first and decay is not None:
        overlaps = pad(overlaps[..., :-1, :], (0, 0, 1, 0))
        readers = torch.cat([first, readers[..., :-1, :]], dim=-2)
    # No state is read in a single chunk that starts with zeros.
    has_readers = state is not None or q.shape[2] > 1
    solution = torch.linalg.solve_triangular(
        overlaps,
        torch.cat([changes, readers], dim=-1) if has_readers else changes,
        upper=False,
        unitriangular=True,
    )
    if has_readers:
        changes, readers = solution.split([v.shape[-1], q.shape[-1]], dim=-1)
    else:
        changes = solution
    # Unbound: the gradient of an index into all chunks would be as large as all of them.
    chunks = zip(
        *(part.unbind(2) for part in (reads, scores, changes, readers, keys.mT)),
        *([None] * q.shape[2] if part is None else part.unbind(2) for part in (additions, total)),
        strict=True,
    )
    outputs = []
    for reads_part, scores_part, change, readers_part, keys_part, addition, state_decay in chunks:
        if state is None:
            outputs.append(scores_part @ change)
            state = keys_part @ change
        else:
            change = change - readers_part @ state
            outputs.append(reads_part @ state + scores_part @ change)
            state = state if state_decay is None else state_decay * state
            state = state + keys_part @ change
        if addition is not None:
            state = state + addition
    assert state is not None
    out = torch.cat(outputs, dim=2)
    if within is not None:
        out = out + within.flatten(2, 3)
    return out[:, :, : steps.q.shape[2]], state
