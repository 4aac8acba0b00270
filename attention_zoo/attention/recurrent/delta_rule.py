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
    if erase_first and decay is not None:
        # What a token erases decays up to the token before it: in that token's row.
        erase = erase.masked_fill(decay.isneginf(), 0.0)
        first, erase = erase[..., :1, :], pad(erase[..., 1:, :], (0, 0, 0, 1))
    (scores, overlaps), (reads, readers), keys, total = decay_chunks(
        torch.stack([q, erase]), k, decay
    )
    if erase_first and decay is not None:
        overlaps = pad(overlaps[..., :-1, :], (0, 0, 1, 0))
        readers = torch.cat([first, readers[..., :-1, :]], dim=-2)
    solution = torch.linalg.solve_triangular(
        overlaps, torch.cat([v, readers], dim=-1), upper=False, unitriangular=True
    )
    values, readers = solution.split([v.shape[-1], q.shape[-1]], dim=-1)
    decays = [None] * q.shape[2] if total is None else total.unbind(2)
    # Unbound: the gradient of an index into all chunks would be as large as all of them.
    parts = reads, scores, values, readers, keys.mT
    chunks = zip(*(part.unbind(2) for part in parts), decays, strict=True)
    outputs = []
    for reads_part, scores_part, written, readers_part, keys_part, state_decay in chunks:
        if state is None:
            outputs.append(scores_part @ written)
            state = keys_part @ written
        else:
            written = written - readers_part @ state
            outputs.append(reads_part @ state + scores_part @ written)
            state = (state if state_decay is None else state_decay * state) + keys_part @ written
    assert state is not None
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
