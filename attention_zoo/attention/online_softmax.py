"""Softmax that is merged from parts, each over keys that were gathered for blocks of queries.

A part p keeps the largest score m_p, and sums over its keys, relative to m_p:

    numerator_p = Σ_j exp(s_j − m_p) v_j,   denominator_p = Σ_j exp(s_j − m_p)
    out = Σ_p exp(m_p − m) numerator_p / Σ_p exp(m_p − m) denominator_p,   m = max_p m_p
"""

from typing import NamedTuple

import torch
from torch import Tensor

from attention_zoo.precision import safe_divide, upcast


class PartialSoftmax(NamedTuple):
    """A softmax over some of the keys, in float32 at least."""

    numerator: Tensor  # [… q c]
    denominator: Tensor  # [… q]
    maximum: Tensor  # [… q], finite also where nothing is visible; no gradient runs through it


def compute_partial_softmax(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float,
    dropout: float = 0.0,
) -> PartialSoftmax:
    """Compute the partial softmax of queries [… u c] over keys [… s c], if `visible` [… u s]."""
    scores = q @ k.transpose(-2, -1) * scale
    if bias is not None:
        scores = scores + bias
    scores = upcast(scores)
    scores = scores.masked_fill(~visible, float("-inf"))
    maximum = scores.detach().amax(dim=-1).clamp(min=torch.finfo(scores.dtype).min)
    powers = torch.exp(scores - maximum[..., None])
    numerator = torch.dropout(powers, dropout, train=True).to(v.dtype) @ v
    return PartialSoftmax(numerator.to(powers.dtype), powers.sum(dim=-1), maximum)


def merge_partial_softmax(parts: list[PartialSoftmax]) -> Tensor:
    """Compute the softmax over the keys of all parts, [… q c]; zeros where none is visible."""
    maximum = torch.stack([part.maximum for part in parts]).amax(dim=0)
    numerator, denominator = torch.zeros_like(parts[0].numerator), torch.zeros_like(maximum)
    for part in parts:
        factor = torch.exp(part.maximum - maximum)
        numerator = numerator + part.numerator * factor[..., None]
        denominator = denominator + part.denominator * factor
    return safe_divide(numerator, denominator[..., None])


def scatter_partial_softmax(part: PartialSoftmax, columns: Tensor, length: int) -> PartialSoftmax:
    """Add up the results of blocks at the columns of their queries.

    Args:
        part: [b h m u …].
        columns: [b|1 m u], of the queries; one outside the row must have seen nothing.
        length: number of columns of a row.

    Returns:
        [b h length …].
    """
    batch, heads = part.maximum.shape[:2]
    index = columns.clamp(0, length - 1).flatten(1)[:, None].expand(batch, heads, -1)
    maxima = part.maximum.flatten(2)
    maximum = maxima.new_full((batch, heads, length), torch.finfo(maxima.dtype).min)
    maximum = maximum.scatter_reduce(2, index, maxima, "amax")
    factor = torch.exp(maxima - maximum.gather(2, index))
    denominator = torch.zeros_like(maximum).scatter_add(
        2, index, part.denominator.flatten(2) * factor
    )
    numerator = part.numerator.flatten(2, 3) * factor[..., None]
    index = index[..., None].expand_as(numerator)
    zeros = numerator.new_zeros(batch, heads, length, numerator.shape[3])
    return PartialSoftmax(zeros.scatter_add(2, index, numerator), denominator, maximum)


def gather_tokens(x: Tensor, columns: Tensor) -> Tensor:
    """Gather x [b g n c] at columns [b|1 m s]: [b g m s c]. Columns outside give the end's."""
    index = columns.clamp(0, x.shape[2] - 1).flatten(1)
    if len(index) == 1:
        gathered = x.index_select(2, index[0])
    else:
        gathered = x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
    return gathered.unflatten(2, columns.shape[1:])


def split_into_blocks(columns: Tensor, size: int) -> Tensor:
    """Split neighbouring columns [q] into blocks [m u]; the last one may reach beyond them."""
    blocks = -(-len(columns) // size)
    return (columns[0] + torch.arange(blocks * size, device=columns.device)).view(blocks, size)


def extend_blocks(blocks: Tensor, before: int, after: int) -> Tensor:
    """Return blocks of neighbouring columns [m u] with others before and after each, [1 m s]."""
    steps = torch.arange(-before, blocks.shape[1] + after, device=blocks.device)
    return (blocks[:, :1] + steps)[None]


def concatenate(*parts: Tensor, dim: int) -> Tensor:
    """Concatenate [b|1 …] along a dimension; a batch of 1 is repeated where others are larger."""
    batch = max(len(part) for part in parts)
    return torch.cat([part.expand(batch, *part.shape[1:]) for part in parts], dim=dim)
