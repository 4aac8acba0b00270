"""Reformer's attention by locality-sensitive hashing (Kitaev et al. 2020)."""

from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import linear, normalize

from attention_zoo.attention.base import Attention, resolve_positions
from attention_zoo.attention.online_softmax import (
    PartialSoftmax,
    merge_partial,
    neighbouring_columns,
    partial_softmax,
    split_into_blocks,
)
from attention_zoo.attention.precision import autocast_disabled
from attention_zoo.backends.reference import masked_softmax
from attention_zoo.caches import Cache
from attention_zoo.errors import UserError
from attention_zoo.masks import Mask
from attention_zoo.zoo import ATTENTION, AttentionCard


class Buckets(NamedTuple):
    """Of every token [b h r n], in r rounds."""

    numbers: Tensor  # its bucket, of its own sequence alone
    chunks: Tensor  # its chunk within the bucket
    order: Tensor  # the tokens sorted by bucket and place

    def at(self, columns: Tensor) -> "Buckets":
        """Of the tokens at columns [b h …], with the rounds in front of these: [b h r …]."""
        rounds = self.numbers.shape[2]
        index = columns.flatten(2)[:, :, None].expand(-1, -1, rounds, -1)
        return Buckets(*(x.gather(3, index).unflatten(3, columns.shape[2:]) for x in self))


@ATTENTION.register(
    AttentionCard(
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
)
class ReformerAttention(Attention):
    """Attention to the keys that fall into the query's own bucket, in one of several hashings.

    Queries and keys are one projection; keys are brought to the length 1. A token x falls into
    the bucket argmax([xR; −xR]) of a random matrix R. In each bucket, tokens stand in their order,
    cut into chunks of m; a query sees those of its chunk and of the chunk before. It sees itself
    only where it sees nothing else in any round. A key that is seen in several rounds counts once.

    Args:
        buckets: their number, even.
        rounds: of hashing, each with a matrix of its own for each head.
        block: m, in tokens.
        seed: of the matrices, which differ from layer to layer.
    """

    decided_options = ("kv_heads",)
    rotations: Tensor

    def __init__(self, *, buckets: int, rounds: int, block: int, seed: int, **options: Any) -> None:
        super().__init__(kv_heads=None, **options)
        if buckets < 2 or buckets % 2 or min(rounds, block) < 1:
            raise UserError(
                "reformer needs an even number of buckets, at least 2, and at least 1 of rounds "
                f"and of tokens in a block, got buckets={buckets}, rounds={rounds}, block={block}."
            )
        del self.key
        self.buckets = buckets
        self.block = block
        chance = torch.Generator().manual_seed(seed + self.layer)
        shape = self.heads, self.head_dim, rounds, buckets // 2
        self.register_buffer("rotations", torch.randn(shape, generator=chance))

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        assert cache is None
        mask = self.effective_mask(mask, x, context)
        q, k, v = self.heads_of(x, positions)
        parts = self.attend_rounds(q, k, v, self.buckets_of(x, mask), mask)
        alone = torch.stack([part.denominator == 0.0 for part in parts]).all(dim=0)
        if mask.key_mask is not None:
            alone = alone & mask.key_mask[:, None]
        weight = alone.to(parts[0].denominator.dtype)
        parts.append(PartialSoftmax(v * weight[..., None], weight, parts[0].maximum))
        return self.finish(merge_partial(parts).to(v.dtype), x)

    def attention_map(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        """A softmax over what is seen in any round, with length² work."""
        mask = self.effective_mask(mask, x, context)
        q, k, _ = self.heads_of(x, positions)
        found = self.buckets_of(x, mask)
        columns = torch.arange(x.shape[1], device=x.device)[None, None]
        visible = mask.gather(columns, columns, x.shape[1])
        itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        seen = near(found, found).any(dim=2) & visible & ~itself
        alone = ~seen.any(dim=-1, keepdim=True)
        return masked_softmax(q @ k.transpose(-2, -1), seen | (alone & visible & itself))

    def values(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        return self.heads_of(x, positions)[2]

    def heads_of(self, x: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, [b h n c] each; keys are queries of length 1."""
        q = self.project_query(x)
        q, k = self.position.rotate(q, normalize(q, dim=-1), resolve_positions(x, positions, None))
        return q, k, rearrange(self.value(x), "b n (h c) -> b h n c", h=self.heads)

    @torch.no_grad()
    def buckets_of(self, x: Tensor, mask: Mask) -> Buckets:
        """Of every token in every round, in float32 at least, so that rounding moves few."""
        kind = torch.promote_types(x.dtype, torch.float32)
        with autocast_disabled(x):
            bias = None if self.query.bias is None else self.query.bias.to(kind)
            q = linear(x.to(kind), self.query.weight.to(kind), bias)
            q = rearrange(q, "b n (h c) -> b h n c", h=self.heads)
            turned = torch.einsum("b h n c, h c r m -> b h r n m", q, self.rotations.to(kind))
        numbers = torch.cat([turned, -turned], dim=-1).argmax(dim=-1)
        if mask.key_mask is not None:
            # Padding has a bucket of its own, where it cannot move anything.
            numbers = numbers.masked_fill(~mask.key_mask[:, None, None], self.buckets)
        if mask.segment_ids is not None:
            changes = (mask.segment_ids[:, 1:] != mask.segment_ids[:, :-1]).cumsum(dim=1)
            sequence = torch.cat([torch.zeros_like(changes[:, :1]), changes], dim=1)
            numbers = numbers + (self.buckets + 1) * sequence[:, None, None]
        order = numbers.argsort(dim=-1, stable=True)
        ranked = numbers.gather(-1, order)
        ranks = torch.arange(x.shape[1], device=x.device)
        begins = torch.where(ranked != ranked.roll(1, dims=-1), ranks, 0).cummax(dim=-1).values
        chunks = torch.empty_like(order).scatter(-1, order, (ranks - begins) // self.block)
        return Buckets(numbers, chunks, order)

    def attend_rounds(
        self, q: Tensor, k: Tensor, v: Tensor, found: Buckets, mask: Mask
    ) -> list[PartialSoftmax]:
        """Of each round, [b h n …], without the queries themselves.

        Sorted by bucket and place, keys that a query sees stand less than two chunks before it
        and less than one behind it, if they may stand behind it at all.
        """
        length = q.shape[2]
        ranks = torch.arange(length, device=q.device)
        own = split_into_blocks(ranks, self.block)
        other = neighbouring_columns(own, 2 * self.block - 1, 0 if mask.causal else self.block - 1)[
            0
        ]
        inside = (other >= 0) & (other < length)
        own, other = own.clamp(max=length - 1), other.clamp(0, length - 1)
        parts = []
        for turn, order in enumerate(found.order.unbind(dim=2)):
            i, j = order[:, :, own], order[:, :, other]
            seen = near(found.at(i), found.at(j))
            visible = mask.gather(i.flatten(1, 2), j.flatten(1, 2), length)
            others = inside[:, None] & (i[..., None] != j[..., None, :])
            part = partial_softmax(
                taken(q, i),
                taken(k, j),
                taken(v, j),
                seen[:, :, turn] & visible.unflatten(1, i.shape[1:3]) & others,
                # What is seen in several rounds counts once.
                bias=-seen.sum(dim=2).clamp(min=1).to(q.dtype).log(),
                scale=1.0,
            )
            back = order.argsort(dim=-1)
            numerator, denominator, maximum = (x.flatten(2, 3) for x in part)
            parts.append(
                PartialSoftmax(
                    taken(numerator, back), denominator.gather(2, back), maximum.gather(2, back)
                )
            )
        return parts

    def naive(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        visible: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Buckets by counting, and the softmax over the union of the rounds in full."""
        q, k, v = self.heads_of(x, positions)
        content = self.project_query(x)
        batch, heads, length, _ = q.shape
        sequence = sequences_of(visible)
        real = visible.diagonal(dim1=1, dim2=2)
        alike = (sequence[:, :, None] == sequence[:, None]) & real[:, :, None] & real[:, None]
        earlier = torch.ones(length, length).tril(-1).bool()
        seen = torch.zeros(batch, heads, length, length, dtype=torch.bool)
        for turn in range(self.rotations.shape[2]):
            directions = torch.cat([self.rotations[:, :, turn], -self.rotations[:, :, turn]], -1)
            bucket = (content @ directions).argmax(dim=-1)
            same = (bucket[..., None] == bucket[..., None, :]) & alike[:, None]
            chunk = (same & earlier).sum(dim=-1) // self.block
            back = chunk[..., None] - chunk[..., None, :]
            seen |= same & ((back == 0) | (back == 1)) & visible[:, None]
        seen &= ~torch.eye(length, dtype=torch.bool)
        alone = torch.diag_embed(~seen.any(dim=-1)) & visible[:, None]
        return self.finish(masked_softmax(q @ k.transpose(-2, -1), seen | alone) @ v, x)


def near(queries: Buckets, keys: Buckets) -> Tensor:
    """Whether keys [b h r … s] are in the bucket of queries [b h r … u], in its chunk or the one
    before: [b h r … u s].
    """
    same = queries.numbers[..., :, None] == keys.numbers[..., None, :]
    back = queries.chunks[..., :, None] - keys.chunks[..., None, :]
    return same & ((back == 0) | (back == 1))


def taken(x: Tensor, columns: Tensor) -> Tensor:
    """X [b h n c] at columns [b h …]: [b h … c]."""
    index = columns.flatten(2)[..., None].expand(-1, -1, -1, x.shape[3])
    return x.gather(2, index).unflatten(2, columns.shape[2:])


def sequences_of(visible: Tensor) -> Tensor:
    """[b n]: numbers of the sequences in a row. A token that sees the real one before it is of the
    same.
    """
    batch, length, _ = visible.shape
    numbers = torch.zeros(batch, length, dtype=torch.long)
    for b in range(batch):
        before = None
        for i in range(length):
            if not visible[b, i, i]:
                continue
            if before is not None:
                numbers[b, i] = numbers[b, before] + int(not visible[b, i, before])
            before = i
    return numbers
