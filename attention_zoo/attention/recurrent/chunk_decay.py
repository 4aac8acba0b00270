"""How decays act between the tokens of a chunk, as products of matrices.

Decays are log a ≤ 0. They are only ever summed over neighbouring tokens, never subtracted: no
exponent is positive, nothing overflows, and a weak decay after a strong one keeps its digits.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

# Its exponential is zero in every type, and its sums are finite.
LOG_ZERO = -1e4


class DecayedChunks(NamedTuple):
    """Rows x and columns y of chunks, and what their decays a make of them."""

    scores: Tensor  # Σ_c x_ic y_jc Π_{j < m ≤ i} a_mc, zero for j > i, [… s s]
    rows: Tensor  # x_i Π_{m ≤ i} a_m, decayed since the start of the chunk, [… s c]
    columns: Tensor  # y_j Π_{m > j} a_m, decayed up to the end of the chunk, [… s c]
    total: Tensor | None  # Π_m a_m, [… c|1 1], by which a state [… c e] decays; None without decay


def decay_chunks(rows: Tensor, columns: Tensor, decay: Tensor | None) -> DecayedChunks:
    """Let rows and columns [… s c] decay by log a [… s 1], or [… s c] with s a power of two."""
    if decay is None:
        return DecayedChunks((rows @ columns.mT).tril(), rows, columns, None)
    if decay.shape[-1] > 1:
        return decay_channels(rows, columns, decay)
    triangle = decay_triangle(decay)
    from_start = decay.cumsum(dim=-2).exp()
    return DecayedChunks(
        scores=(rows @ columns.mT) * triangle,
        rows=rows * from_start,
        columns=columns * triangle[..., -1, :, None],
        total=from_start[..., -1:, :],
    )


def decay_triangle(decay: Tensor) -> Tensor:
    """Compute Π_{j < m ≤ i} a_m from log a [… s 1], zero for j > i: [… s s].

    The sums over m are a product of matrices, of which each term is one decay or zero. Where a
    device rounds the factors of products (TF32), it is no worse for these than for the scores.
    """
    size = decay.shape[-2]
    ones = torch.ones(size, size, dtype=decay.dtype, device=decay.device)
    later = torch.full_like(ones, float("-inf")).triu(1)
    sums = ones.tril() @ (decay.clamp(min=LOG_ZERO) * ones.tril(-1))
    return sums.add_(later).exp_()


def decay_channels(rows: Tensor, columns: Tensor, decay: Tensor) -> DecayedChunks:
    """Compute `decay_chunks` for a decay of each channel, which no matrix of scores can take in.

    Neighbouring blocks are joined, from single tokens to the chunk. The decay from a token of the
    first block to one of the second is that up to the border, times that from there on. So the
    scores between two blocks are a product of matrices, whose factors have decayed already.
    """
    scores = (rows * columns).sum(dim=-1)[..., None, None]  # within each block, [… blocks s s]
    rows = rows * decay.exp()
    # Of each block, [… blocks c]. Products of many decays that are nearly 1 would lose digits.
    log_total = decay
    size = 1
    while size < decay.shape[-2]:
        early_rows, late_rows = pair_blocks(rows, size)
        early_columns, late_columns = pair_blocks(columns, size)
        log_totals = log_total.unflatten(-2, (-1, 2))
        early_total, late_total = log_totals.exp()[..., None].mT.unbind(-3)
        early, late = scores.unflatten(-3, (-1, 2)).unbind(-3)
        across = late_rows @ early_columns.mT
        scores = torch.cat([pad(early, (0, size)), torch.cat([across, late], dim=-1)], dim=-2)
        rows = join_blocks(early_rows, late_rows * early_total)
        columns = join_blocks(early_columns * late_total, late_columns)
        log_total = log_totals.sum(dim=-2)
        size *= 2
    return DecayedChunks(scores[..., 0, :, :], rows, columns, log_total.exp().mT)


def pair_blocks(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the first and the second of each two blocks of tokens [… t c]: [… pairs size c]."""
    first, second = x.unflatten(-2, (-1, 2, size)).unbind(-3)
    return first, second


def join_blocks(first: Tensor, second: Tensor) -> Tensor:
    """Undo `pair_blocks`."""
    return torch.stack([first, second], dim=-3).flatten(-4, -2)
