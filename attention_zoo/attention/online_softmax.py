"""Softmaxes put together from parts, each over keys that were gathered for blocks of queries.

Of each part we keep the sum of exp(score − peak) v, that of exp(score − peak), and the peak itself,
the highest score:

    out = Σ_p exp(peak_p − peak) above_p / Σ_p exp(peak_p − peak) below_p,   peak = max_p peak_p
"""

from typing import NamedTuple

import torch
from torch import Tensor

from attention_zoo.attention.precision import upcast


class PartialSoftmax(NamedTuple):
    """Of a softmax: what it comes to over some of the keys. In float32 at least."""

    numerator: Tensor  # [… q c]
    denominator: Tensor  # [… q]
    maximum: Tensor  # [… q], finite also where nothing is visible; no gradient runs through it


def partial_softmax(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float,
    dropout: float = 0.0,
) -> PartialSoftmax:
    """Of queries [… u c] over keys and values [… s c], where `visible` [… u s] says so."""
    scores = q @ k.transpose(-2, -1) * scale
    if bias is not None:
        scores = scores + bias
    scores = upcast(scores)
    scores = scores.masked_fill(~visible, float("-inf"))
    maximum = scores.detach().amax(dim=-1).clamp(min=torch.finfo(scores.dtype).min)
    powers = torch.exp(scores - maximum[..., None])
    numerator = torch.dropout(powers, dropout, train=True) @ v
    return PartialSoftmax(numerator.to(powers.dtype), powers.sum(dim=-1), maximum)


def merge_partial(parts: list[PartialSoftmax]) -> Tensor:
    """The softmax over the keys of all parts, [… q c]; zeros where none of them is visible."""
    maximum = torch.stack([part.maximum for part in parts]).amax(dim=0)
    numerator, denominator = torch.zeros_like(parts[0].numerator), torch.zeros_like(maximum)
    for part in parts:
        share = torch.exp(part.maximum - maximum)
        numerator = numerator + part.numerator * share[..., None]
        denominator = denominator + part.denominator * share
    return numerator / denominator.masked_fill(denominator == 0.0, 1.0)[..., None]


def scatter_blocks(part: PartialSoftmax, rows: Tensor, length: int) -> PartialSoftmax:
    """Parts of several blocks, brought to the columns of their queries and added up there.

    Args:
        part: [b h m r …].
        rows: [b|1 m r], the columns; what is outside of the row must have seen nothing.

    Returns:
        [b h length …].
    """
    batch, heads = part.maximum.shape[:2]
    index = rows.clamp(0, length - 1).flatten(1)[:, None].expand(batch, heads, -1)
    maxima = part.maximum.flatten(2)
    maximum = maxima.new_full((batch, heads, length), torch.finfo(maxima.dtype).min)
    maximum = maximum.scatter_reduce(2, index, maxima, "amax")
    share = torch.exp(maxima - maximum.gather(2, index))
    denominator = torch.zeros_like(maximum).scatter_add(
        2, index, part.denominator.flatten(2) * share
    )
    numerator = part.numerator.flatten(2, 3) * share[..., None]
    wide = index[..., None].expand_as(numerator)
    zeros = numerator.new_zeros(batch, heads, length, numerator.shape[3])
    return PartialSoftmax(zeros.scatter_add(2, wide, numerator), denominator, maximum)


def gathered(x: Tensor, columns: Tensor) -> Tensor:
    """X [b g n c] at columns [b|1 m s]: [b g m s c]. Those outside give what is at the end."""
    index = columns.clamp(0, x.shape[2] - 1).flatten(1)
    if len(index) == 1:
        taken = x.index_select(2, index[0])
    else:
        taken = x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
    return taken.unflatten(2, columns.shape[1:])


def split_into_blocks(columns: Tensor, size: int) -> Tensor:
    """Neighbouring columns [q] in blocks of a size, [m u]; the last one may reach beyond them."""
    blocks = -(-len(columns) // size)
    return (columns[0] + torch.arange(blocks * size, device=columns.device)).view(blocks, size)


def neighbouring_columns(queries: Tensor, before: int, after: int) -> Tensor:
    """[1 m s]: from contiguous blocks [m u], so many columns before each, and so many after it."""
    steps = torch.arange(-before, queries.shape[1] + after, device=queries.device)
    return (queries[:, :1] + steps)[None]


def concatenate(*parts: Tensor, dim: int) -> Tensor:
    """[b|1 …] joined along a dimension; what all rows share is repeated where it must be."""
    batch = max(len(part) for part in parts)
    return torch.cat([part.expand(batch, *part.shape[1:]) for part in parts], dim=dim)
