"""Reformer's attention by locality-sensitive hashing (Kitaev et al. 2020)."""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import linear

from attention_zoo.attention.base import Attention
from attention_zoo.attention.naive import linear_heads, linear_output, rotate_heads, softmax
from attention_zoo.attention.online_softmax import (
    PartialSoftmax,
    compute_partial_softmax,
    extend_blocks,
    merge_partial_softmax,
    split_into_blocks,
)
from attention_zoo.backends.reference import masked_softmax
from attention_zoo.caches import Cache
from attention_zoo.custom_gradients import NO_LENGTH, unit_vectors
from attention_zoo.errors import UserError, check_positive
from attention_zoo.masks import Mask, find_segment_starts
from attention_zoo.precision import autocast_disabled, upcast
from attention_zoo.zoo import ATTENTION


class Buckets(NamedTuple):
    """The buckets of all tokens [b h r n], in r rounds."""

    numbers: Tensor  # the bucket of each token, which holds tokens of one sequence only
    chunks: Tensor  # the token's chunk within the bucket
    order: Tensor  # the tokens sorted by bucket and column

    def gather(self, columns: Tensor) -> "Buckets":
        """Gather those of the tokens at columns [b h …], with the rounds first: [b h r …]."""
        rounds = self.numbers.shape[2]
        index = columns.flatten(2)[:, :, None].expand(-1, -1, rounds, -1)
        return Buckets(*(x.gather(3, index).unflatten(3, columns.shape[2:]) for x in self))


@ATTENTION.register(
    name="reformer",
    paper="Kitaev et al. 2020, arXiv 2001.04451, §2 and appendix A",
    equation="softmax(q_i·k_j) V over the keys in the query's buckets, k_j = q_j/|q_j|",
    reference="transformers LSHSelfAttention",
    deviations="chunks are counted within each bucket, where the paper cuts the whole sorted "
    "row: there, what comes later, padding or another packed sequence moves the cuts, and so "
    "changes what a token sees; the number of buckets does not grow with the length; layers "
    "are not reversible; no cached decoding",
    roles=("causal", "global"),
    masks=("causal", "window", "key_mask", "segment_ids"),
    positions=("positions", "embeddings", "heads"),
    chooses="buckets",
    cost="t log t",
)
class ReformerAttention(Attention):
    """Attention to the keys that fall into the query's own bucket, in one of several hashings.

    Queries and keys are one projection; keys are scaled to the length 1. A token x falls into the
    bucket argmax([xR; −xR]) of a random matrix R. The tokens of a bucket, in their order, are cut
    into chunks of m. A query sees those of its chunk and of the chunk before. It sees itself only
    where it sees nothing else in any round. A key that is seen in several rounds counts once.

    Args:
        buckets: number of buckets, even.
        rounds: number of hashings; each has a matrix for each head.
        block: m, in tokens.
        seed: seed of the matrices, which differ from layer to layer.
    """

    decided_options = ("kv_heads",)
    rotations: Tensor

    def __init__(self, *, buckets: int, rounds: int, block: int, seed: int, **options: Any) -> None:
        super().__init__(kv_heads=None, **options)
        check_positive(rounds=rounds, block=block)
        if buckets < 2 or buckets % 2:
            raise UserError(f"buckets must be even and at least 2, got {buckets}.")
        del self.key
        self.buckets = buckets
        self.block = block
        generator = torch.Generator().manual_seed(seed + self.layer)
        shape = self.heads, self.head_dim, rounds, buckets // 2
        self.register_buffer("rotations", torch.randn(shape, generator=generator))

    def attend_tokens(
        self, x: Tensor, context: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None
    ) -> Tensor:
        q, k, v = self.project_qkv(x, positions)
        parts = self.attend_rounds(q, k, v, self.hash_tokens(x, mask), mask)
        is_alone = torch.stack([part.denominator == 0.0 for part in parts]).all(dim=0)
        if mask.key_mask is not None:
            is_alone = is_alone & mask.key_mask[:, None]
        weight = is_alone.to(parts[0].denominator.dtype)
        parts.append(PartialSoftmax(v * weight[..., None], weight, parts[0].maximum))
        return merge_partial_softmax(parts).to(v.dtype)

    def compute_map(self, x: Tensor, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        """Compute the softmax over all keys that are seen in any round, with length² work."""
        q, k, _ = self.project_qkv(x, positions)
        buckets = self.hash_tokens(x, mask)
        columns = torch.arange(x.shape[1], device=x.device)[None, None]
        visible = mask.gather(columns, columns, x.shape[1])
        is_self = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        seen = share_bucket(buckets, buckets).any(dim=2) & visible & ~is_self
        is_alone = ~seen.any(dim=-1, keepdim=True)
        return masked_softmax(q @ k.transpose(-2, -1), seen | (is_alone & visible & is_self))

    def compute_values(self, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        return rearrange(self.value(source), "b n (h c) -> b h n c", h=self.heads)

    def project_qkv(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project to queries, keys and values, [b h n c] each; keys are queries of length 1."""
        q = self.project_query(x)
        k = unit_vectors(q, epsilon=NO_LENGTH).to(q.dtype)
        q, k = self.position.rotate(q, k, positions)
        return q, k, rearrange(self.value(x), "b n (h c) -> b h n c", h=self.heads)

    @torch.no_grad()
    def hash_tokens(self, x: Tensor, mask: Mask) -> Buckets:
        """Hash every token in every round, in float32 at least, so that rounding moves few."""
        with autocast_disabled(x):
            x = upcast(x)
            bias = None if self.query.bias is None else self.query.bias.to(x.dtype)
            q = linear(x, self.query.weight.to(x.dtype), bias)
            q = rearrange(q, "b n (h c) -> b h n c", h=self.heads)
            products = torch.einsum("b h n c, h c r m -> b h r n m", q, self.rotations.to(x.dtype))
        numbers = torch.cat([products, -products], dim=-1).argmax(dim=-1)
        if mask.key_mask is not None:
            # Padding has a bucket of its own, where it cannot move anything.
            numbers = numbers.masked_fill(~mask.key_mask[:, None, None], self.buckets)
        if mask.segment_ids is not None:
            sequences = find_segment_starts(mask.segment_ids).cumsum(dim=1)
            numbers = numbers + (self.buckets + 1) * sequences[:, None, None]
        order = numbers.argsort(dim=-1, stable=True)
        sorted_numbers = numbers.gather(-1, order)
        ranks = torch.arange(x.shape[1], device=x.device)
        is_first = sorted_numbers != sorted_numbers.roll(1, dims=-1)
        starts = torch.where(is_first, ranks, 0).cummax(dim=-1).values
        chunks = torch.empty_like(order).scatter(-1, order, (ranks - starts) // self.block)
        return Buckets(numbers, chunks, order)

    def attend_rounds(
        self, q: Tensor, k: Tensor, v: Tensor, buckets: Buckets, mask: Mask
    ) -> list[PartialSoftmax]:
        """Attend in each round, [b h n …], from queries to others than themselves.

        Sorted by bucket and column, the keys that a query sees are less than two chunks before it,
        and less than one after it, if it may see later keys at all.
        """
        length = q.shape[2]
        blocks = split_into_blocks(torch.arange(length, device=q.device), self.block)
        after = 0 if mask.causal else self.block - 1
        others = extend_blocks(blocks, 2 * self.block - 1, after)[0]
        is_inside = (others >= 0) & (others < length)
        blocks, others = blocks.clamp(max=length - 1), others.clamp(0, length - 1)
        parts = []
        for index, order in enumerate(buckets.order.unbind(dim=2)):
            i, j = order[:, :, blocks], order[:, :, others]
            shared = share_bucket(buckets.gather(i), buckets.gather(j))
            visible = mask.gather(i.flatten(1, 2), j.flatten(1, 2), length)
            is_other = is_inside[:, None] & (i[..., None] != j[..., None, :])
            part = compute_partial_softmax(
                gather_per_head(q, i),
                gather_per_head(k, j),
                gather_per_head(v, j),
                shared[:, :, index] & visible.unflatten(1, i.shape[1:3]) & is_other,
                # A key that is seen in several rounds counts once.
                bias=-shared.sum(dim=2).clamp(min=1).to(q.dtype).log(),
                scale=1.0,
            )
            inverse = order.argsort(dim=-1)
            numerator = gather_per_head(part.numerator.flatten(2, 3), inverse)
            denominator, maximum = (x.flatten(2, 3).gather(2, inverse) for x in part[1:])
            parts.append(PartialSoftmax(numerator, denominator, maximum))
        return parts

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Count the tokens of each bucket, and compute the softmax over the union of the rounds."""
        content = linear_heads(self.query, x, self.heads)
        q = rotate_heads(self.position, content, positions, of="query")
        unit = content / torch.sqrt((content**2).sum(dim=-1, keepdim=True))
        k = rotate_heads(self.position, unit, positions, of="key")
        v = linear_heads(self.value, source, self.heads)
        sequences, is_real = naive_sequences(visible), visible.diagonal(dim1=1, dim2=2)
        same_sequence = sequences[:, :, None] == sequences[:, None]
        same_sequence &= is_real[:, :, None] & is_real[:, None]
        is_earlier = torch.ones_like(visible).tril(-1)
        is_self = torch.eye(x.shape[1], dtype=torch.bool)
        attended = []
        for h in range(self.heads):
            seen = torch.zeros_like(visible)
            for matrix in self.rotations[h].unbind(dim=1):
                buckets = (content[:, h] @ torch.cat([matrix, -matrix], dim=-1)).argmax(dim=-1)
                together = (buckets[:, :, None] == buckets[:, None]) & same_sequence
                chunks = (together & is_earlier).sum(dim=-1) // self.block
                back = chunks[:, :, None] - chunks[:, None]
                seen |= together & ((back == 0) | (back == 1))
            seen &= visible & ~is_self
            seen |= ~seen.any(dim=-1, keepdim=True) & visible & is_self
            scores = q[:, h] @ k[:, h].transpose(1, 2)
            attended.append(softmax(scores[:, None], seen)[:, 0] @ v[:, h])
        return linear_output(self.output, torch.stack(attended, dim=1))


def share_bucket(queries: Buckets, keys: Buckets) -> Tensor:
    """Return which keys share a bucket with queries, in its chunk or the one before: [… u s]."""
    same = queries.numbers[..., :, None] == keys.numbers[..., None, :]
    back = queries.chunks[..., :, None] - keys.chunks[..., None, :]
    return same & ((back == 0) | (back == 1))


def gather_per_head(x: Tensor, columns: Tensor) -> Tensor:
    """Gather x [b h n c] at columns [b h …]: [b h … c]."""
    index = columns.flatten(2)[..., None].expand(-1, -1, -1, x.shape[3])
    return x.gather(2, index).unflatten(2, columns.shape[2:])


def naive_sequences(visible: Tensor) -> Tensor:
    """Return numbers of sequences [b n]: one starts where a token sees no real one before it."""
    batch, length, _ = visible.shape
    numbers = torch.zeros(batch, length, dtype=torch.long)
    for b in range(batch):
        real = [i for i in range(length) if visible[b, i, i]]
        for before, i in pairwise(real):
            numbers[b, i] = numbers[b, before] + int(not visible[b, i, before])
    return numbers
