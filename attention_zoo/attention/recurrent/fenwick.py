"""States of ever wider buckets of past tokens: a Fenwick tree of decaying states."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_zoo.attention.recurrent.recurrence import sum_after
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.masks import TokenSpan

# Tokens computed in parallel between two updates of the buckets; more than for a single state, as
# an update costs more.
CHUNK = 128


class Buckets(NamedTuple):
    """The buckets after n tokens: for each bit b of n that is set, the state of 2^b tokens.

    The tokens of the buckets follow each other, the largest bucket first; if a bit is not set, its
    state is zero.
    """

    states: Tensor  # [b h c s e], of the bits 0 to s − 1
    lengths: Tensor  # [b], n

    @property
    def starts(self) -> Tensor:
        """Return the position of the first token of each bucket, [b s]."""
        shift = 1 + torch.arange(self.states.shape[3], device=self.lengths.device)
        return (self.lengths[:, None] >> shift) << shift


def count_tokens(x: Tensor, span: TokenSpan, before: Tensor) -> tuple[Tensor, Tensor]:
    """Count the real tokens of a segment, up to each token x [b t d] of the span.

    Args:
        x: the tokens.
        span: the mask's part for them.
        before: [b], the number of tokens before them in their segment.

    Returns:
        The number before each token, its position, and the number with it, [b t] each.
    """
    real = torch.ones(x.shape[:2], dtype=torch.long, device=x.device)
    if span.key_mask is not None:
        real = span.key_mask.long()
    lengths = before[:, None] + real.cumsum(dim=1)
    positions = lengths - real
    starts = span.segment_starts
    if starts is not None:
        earlier_segments = torch.where(starts, positions, 0).cummax(dim=1).values
        positions, lengths = positions - earlier_segments, lengths - earlier_segments
    return positions, lengths


def bucketed_product(
    steps: Steps, level_weights: Tensor, positions: Tensor, lengths: Tensor, buckets: Buckets
) -> tuple[Tensor, Buckets]:
    """Compute Σ_l λ_i^l q_i S_i^l, S_i^l the decayed sum of k_jᵀv_j in the bucket of level l.

        out_i = Σ_{j ≤ i} λ_i^{l(i, j)} (q_i·k_j) (Π_{j < m ≤ i} a_m) v_j

    where l(i, j) is the number of binary digits of i xor j, for positions i and j in a segment:
    one of the aligned ranges of 2^l positions has j in its left half and i in its right half, and
    that left half is the bucket.

    Args:
        steps: with a decay log a, [b h t 1].
        level_weights: λ, [b h t l].
        positions: [b t], from `count_tokens`.
        lengths: [b t], likewise.
        buckets: those before the first token, with room for those after the last one.

    Returns:
        [b h t e], and the buckets after the last token.
    """
    outputs = []
    for start in range(0, steps.q.shape[2], CHUNK):
        chunk = slice(start, start + CHUNK)
        q, k, v, decay, weights = (
            part[:, :, chunk]
            for part in (steps.q, steps.k, steps.v, steps.decay, level_weights)
            if part is not None
        )
        outputs.append(
            product_within_chunk(q, k, v, decay, weights, positions[:, chunk])
            + read_buckets(q, decay, weights, positions[:, chunk], buckets)
        )
        length = lengths[:, chunk][:, -1]
        buckets = update_buckets(k, v, decay, positions[:, chunk], length, buckets)
    return torch.cat(outputs, dim=2), buckets


def product_within_chunk(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, level_weights: Tensor, positions: Tensor
) -> Tensor:
    """Compute `bucketed_product` of a chunk alone, [b h t e]."""
    is_after = torch.ones(2 * q.shape[2:3], dtype=torch.bool, device=q.device).tril(-1)
    # [b h i j], the decays after j, up to i: as a sum, which keeps its digits.
    decays = torch.where(is_after, decay, 0.0).cumsum(dim=-2)
    levels = count_digits(positions[:, :, None] ^ positions[:, None, :])
    scores = (q @ k.transpose(-2, -1)) * decays.exp() * gather_levels(level_weights, levels)
    return scores.tril() @ v


def read_buckets(
    q: Tensor, decay: Tensor, level_weights: Tensor, positions: Tensor, buckets: Buckets
) -> Tensor:
    """Let the queries of a chunk read the buckets before it, [b h t e]."""
    levels = count_digits(positions[:, :, None] ^ buckets.starts[:, None, :])
    weights = gather_levels(level_weights, levels) * decay.cumsum(dim=-2).exp()
    products = (q @ buckets.states.flatten(-2)).unflatten(-1, (weights.shape[-1], -1))
    return (weights[..., None, :] @ products)[..., 0, :]


def update_buckets(
    k: Tensor, v: Tensor, decay: Tensor, positions: Tensor, lengths: Tensor, before: Buckets
) -> Buckets:
    """Return the buckets after a chunk, which hold `lengths` [b] tokens."""
    bits = torch.arange(before.states.shape[3], device=lengths.device)
    # A bucket is part of one new bucket: its size is the highest bit in which the position of the
    # old bucket differs from that of the next token.
    is_moved = count_digits(before.starts ^ lengths[:, None])[..., None] - 1 == bits
    is_added = count_digits(positions ^ lengths[:, None])[..., None] - 1 == bits
    moved = torch.einsum("b s z, b h c s e -> b h c z e", is_moved.to(k.dtype), before.states)
    keys = (k * sum_after(decay).exp()).transpose(-2, -1)
    values = (is_added[:, None, :, :, None] * v[..., None, :]).flatten(-2)
    added = (keys @ values).unflatten(-1, (len(bits), -1))
    factor = decay.sum(dim=-2).exp()[..., None, None]
    return Buckets(factor * moved + added, lengths)


def gather_levels(level_weights: Tensor, levels: Tensor) -> Tensor:
    """Gather λ [b h t l] at levels [b t k]: [b h t k]."""
    return level_weights.gather(-1, levels[:, None].expand(-1, level_weights.shape[1], -1, -1))


def count_digits(n: Tensor) -> Tensor:
    """Count the binary digits of integers from 0 on."""
    powers = 2 ** torch.arange(62, device=n.device)
    return torch.bucketize(n, powers, right=True)


def grow_buckets(buckets: Buckets, length: int) -> Buckets:
    """Make room for the buckets after `length` tokens."""
    new_bits = length.bit_length() - buckets.states.shape[3]
    return Buckets(pad(buckets.states, (0, 0, 0, new_bits)), buckets.lengths)


def level_table(length: int) -> Tensor:
    """Build the table [length length] of the level of each position for a query at each.

    This is the definition of the tree: from the end of the tokens before the query, ranges are cut
    off, each as long as the lowest bit of their number.
    """
    table = torch.zeros(length, length, dtype=torch.long)
    for query in range(length):
        end = query
        while end > 0:
            start = end & (end - 1)
            table[query, start:end] = (end - start).bit_length()
            end = start
    return table
