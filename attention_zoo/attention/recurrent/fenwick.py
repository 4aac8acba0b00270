"""States of ever wider stretches of the past: a Fenwick tree of decaying states."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_zoo.attention.recurrent.recurrence import sum_after

# Tokens computed in parallel between two updates of the buckets; more than where there is but one
# state to update.
CHUNK = 128


class Buckets(NamedTuple):
    """Behind n tokens: for each bit b of n that is set, the state of a stretch of 2^b tokens.

    The stretches follow each other, the largest first; where a bit is not set, the state is zero.
    """

    states: Tensor  # [b h c s e], of the bits 0 to s − 1
    length: Tensor  # [b], n

    @property
    def starts(self) -> Tensor:
        """[b s], the place of the first token of each bucket."""
        above = 1 + torch.arange(self.states.shape[3], device=self.length.device)
        return (self.length[:, None] >> above) << above


class Counts(NamedTuple):
    """Of some successive tokens, how many real ones of their segment there are."""

    before: Tensor  # [b t], up to a token, without it: its place
    behind: Tensor  # [b t], with it


def bucketed_product(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    level_weights: Tensor,
    counts: Counts,
    buckets: Buckets,
) -> tuple[Tensor, Buckets]:
    """Σ_l λ_i^l q_i S_i^l, S_i^l the decayed sum of k_jᵀv_j in the bucket of the level l:

        out_i = Σ_{j ≤ i} λ_i^{l(i, j)} (q_i·k_j) (Π_{j < m ≤ i} a_m) v_j

    where l(i, j) is the number of binary digits of i xor j, and places are counted in a segment:
    among aligned stretches of 2^l places there is one with j in its left half and i in its right
    half, and that left half is the bucket.

    Args:
        q, k: [b h t c]. v: [b h t e].
        decay: log a, [b h t 1], as `decayed_product` takes it.
        level_weights: λ, [b h t l].
        buckets: those before the first token, with room for those behind the last one.

    Returns:
        [b h t e], and the buckets behind the last token.
    """
    outputs = []
    for start in range(0, q.shape[2], CHUNK):
        own = slice(start, start + CHUNK)
        queries, keys, values, decays, weights = (
            part[:, :, own] for part in (q, k, v, decay, level_weights)
        )
        token_positions, length = counts.before[:, own], counts.behind[:, own][:, -1]
        outputs.append(
            within(queries, keys, values, decays, weights, token_positions)
            + from_buckets(queries, decays, weights, token_positions, buckets)
        )
        buckets = merge_partial(keys, values, decays, token_positions, length, buckets)
    return torch.cat(outputs, dim=2), buckets


def within(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, level_weights: Tensor, token_positions: Tensor
) -> Tensor:
    """`bucketed_product` of a chunk alone, [b h t e]."""
    later = torch.ones(2 * q.shape[2:3], dtype=torch.bool, device=q.device).tril(-1)
    # [b h i j], what decays behind j, up to i: as a sum, which keeps its digits.
    window_span = torch.where(later, decay, 0.0).cumsum(dim=-2)
    levels = digits(token_positions[:, :, None] ^ token_positions[:, None, :])
    scores = (q @ k.transpose(-2, -1)) * window_span.exp() * chosen(level_weights, levels)
    return scores.tril() @ v


def from_buckets(
    q: Tensor, decay: Tensor, level_weights: Tensor, token_positions: Tensor, buckets: Buckets
) -> Tensor:
    """What the queries of a chunk see of the buckets before it, [b h t e]."""
    levels = digits(token_positions[:, :, None] ^ buckets.starts[:, None, :])
    weights = chosen(level_weights, levels) * decay.cumsum(dim=-2).exp()
    seen = (q @ buckets.states.flatten(-2)).unflatten(-1, (weights.shape[-1], -1))
    return (weights[..., None, :] @ seen)[..., 0, :]


def merge_partial(
    k: Tensor, v: Tensor, decay: Tensor, token_positions: Tensor, length: Tensor, before: Buckets
) -> Buckets:
    """The buckets behind a chunk, of `length` [b] tokens with those before."""
    slots = torch.arange(before.states.shape[3], device=length.device)
    # A stretch lies wholly in one of the new buckets: that whose size is the highest bit in which
    # its place differs from the next token's.
    moved = digits(before.starts ^ length[:, None])[..., None] - 1 == slots
    added = digits(token_positions ^ length[:, None])[..., None] - 1 == slots
    held = torch.einsum("b s z, b h c s e -> b h c z e", moved.to(k.dtype), before.states)
    keys = (k * sum_after(decay).exp()).transpose(-2, -1)
    values = (added[:, None, :, :, None] * v[..., None, :]).flatten(-2)
    new = (keys @ values).unflatten(-1, (len(slots), -1))
    kept = decay.sum(dim=-2).exp()[..., None, None]
    return Buckets(kept * held + new, length)


def chosen(level_weights: Tensor, levels: Tensor) -> Tensor:
    """Of λ [b h t l] those of the levels [b t k]: [b h t k]."""
    return level_weights.gather(-1, levels[:, None].expand(-1, level_weights.shape[1], -1, -1))


def digits(n: Tensor) -> Tensor:
    """Of integers from 0, how many binary digits they have."""
    powers = 2 ** torch.arange(62, device=n.device)
    return torch.bucketize(n, powers, right=True)


def with_room(buckets: Buckets, length: int) -> Buckets:
    """With room for those behind `length` tokens."""
    missing = length.bit_length() - buckets.states.shape[3]
    return Buckets(pad(buckets.states, (0, 0, 0, missing)), buckets.length)


def level_table(length: int) -> Tensor:
    """[length length], the level of each place for a query at each: the tree as it is defined.

    From what is before the query, stretches are cut off at its end, each as long as the lowest bit
    of what remains.
    """
    table = torch.zeros(length, length, dtype=torch.long)
    for place in range(length):
        end = place
        while end > 0:
            start = end & (end - 1)
            table[place, start:end] = (end - start).bit_length()
            end = start
    return table
