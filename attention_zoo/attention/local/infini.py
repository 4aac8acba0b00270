"""Infini-attention: local attention and a compressive memory (Munkhdalai et al. 2024)."""

import math
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, pad

from attention_zoo.attention import naive
from attention_zoo.attention.kernel.linear import SMALLEST_ELU
from attention_zoo.attention.online_softmax import gather_tokens, split_into_blocks
from attention_zoo.attention.softmax import SoftmaxAttention, register_softmax
from attention_zoo.backends.reference import masked_softmax, repeat_heads
from attention_zoo.caches import Cache, StateCache
from attention_zoo.errors import check_positive
from attention_zoo.masks import Mask, count_real_tokens, gather_columns, order_real_first
from attention_zoo.precision import autocast_disabled, safe_divide, upcast


class Tokens(NamedTuple):
    """Real tokens, first in each row, with their numbers; in a cache also some that are not real.

    The memory takes keys that no encoding has rotated.
    """

    keys: Tensor  # [b g n c]
    rotated: Tensor  # [b g n …]
    values: Tensor  # [b g n c]
    sequence: Tensor  # [b n], of the packed sequence
    segment: Tensor  # [b n], of the segment in it
    real: Tensor  # [b n] bool

    def gather(self, columns: Tensor) -> "Tokens":
        """Return the tokens at columns [b s]."""
        return Tokens(
            *(gather_tokens(part, columns[:, None])[:, :, 0] for part in self[:3]),
            *(part.gather(1, columns.clamp(0, part.shape[1] - 1)) for part in self[3:]),
        )


@register_softmax(
    name="infini",
    paper="Munkhdalai et al. 2024, arXiv 2404.07143",
    equation="σ(β) φ(Q)M/φ(Q)z + (1 − σ(β)) softmax(QKᵀ/√c)V in a segment, M, z of those before",
    reference="closed form",
    deviations="the linear update of the memory, not the one with the delta rule; segments are "
    "counted over the real tokens of each packed sequence; no mask's window, which the memory "
    "cannot obey, and no encoding on scores; of packed rows, the memory takes (t/N)² sums",
    roles=("causal",),
    masks=("causal", "key_mask", "segment_ids"),
    positions=("positions", "embeddings", "heads", "width"),
    cache="a memory of c·(c + 1) numbers for each head, and the present segment",
    weights="nonnegative",
    cost="t",
)
class InfiniAttention(SoftmaxAttention):
    """Softmax attention within segments of N tokens, and linear attention to all before.

        A_mem = φ(Q) M / φ(Q) z,   M = Σ φ(k_j)ᵀ v_j,   z = Σ φ(k_j),   φ(x) = elu(x) + 1
        out = σ(β) A_mem + (1 − σ(β)) softmax(QKᵀ/√c) V

    The sums are over the tokens j of all earlier segments, and softmax is over the past of the
    query's own segment. β is learned for each head and starts at 0. The memory has no positions: an
    encoding rotates the queries and keys of the softmax alone. In the first segment A_mem is 0.

    Args:
        segment: N, the number of tokens in a segment.
    """

    decided_options = ("backend", "window")
    no_decay = ("balance",)

    def __init__(self, *, segment: int, **options: Any) -> None:
        super().__init__(backend="reference", **options)
        check_positive(segment=segment)
        self.segment = segment
        self.balance = nn.Parameter(torch.zeros(self.heads))

    def create_cache(self) -> Cache:
        return StateCache()

    def decode_state(self, tokens: int) -> int:
        local = 3 * self.segment * self.head_dim
        return self.kv_heads * (self.head_dim * (self.head_dim + 1) + local)

    def attend_tokens(
        self, x: Tensor, context: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None
    ) -> Tensor:
        assert cache is None or isinstance(cache, StateCache)
        q, rotated, tokens = self.project_tokens(
            x, mask, positions, 0 if cache is None else cache.length
        )
        of_queries, memory, owner = tokens, None, None
        ranks = tokens.real.cumsum(dim=1)
        if cache is not None and cache.state is not None:
            memory, owner, *cached = cache.state
            ranks = ranks + cached[-1].sum(dim=1, keepdim=True)
            parts = zip(cached, tokens, (2, 2, 2, 1, 1, 1), strict=True)
            tokens = Tokens(*(torch.cat([old, new], dim=dim) for old, new, dim in parts))
        if mask.key_mask is not None or memory is not None:
            tokens = tokens.gather(order_real_first(tokens.real))
        with autocast_disabled(x):
            out = self.attend_segments(
                q,
                rotated,
                of_queries,
                ranks,
                tokens,
                memory,
                owner,
                packed=mask.segment_ids is not None,
            )
            if cache is not None:
                cache.length += x.shape[1]
                cache.state = self.update_state(tokens, ranks[:, -1:], memory, owner)
        return out

    def project_tokens(
        self, x: Tensor, mask: Mask, positions: Tensor, cached: int
    ) -> tuple[Tensor, Tensor, Tokens]:
        """Project x to queries, plain and rotated [b h t c], and to the tokens of its columns.

        A token that is padding has the numbers of the last real one before it.
        """
        q, (k, v) = self.project_query(x), self.project_key_value(x)
        rotated_q, rotated_k = self.apply_position(q, k, positions)
        counts, before = count_real_tokens(mask, cached + x.shape[1], x.device)
        counts, before = (
            part.expand(len(x), cached + x.shape[1])[:, cached:] for part in (counts, before)
        )
        real = torch.ones_like(counts, dtype=torch.bool)
        if mask.key_mask is not None:
            real = mask.key_mask[:, cached:].expand(len(x), -1)
        segment = (counts - 1 - before).div(self.segment, rounding_mode="floor")
        return q, rotated_q, Tokens(k, rotated_k, v, before, segment, real)

    def attend_segments(
        self,
        q: Tensor,
        rotated: Tensor,
        of_queries: Tokens,
        ranks: Tensor,
        tokens: Tokens,
        memory: Tensor | None,
        owner: Tensor | None,
        *,
        packed: bool,
    ) -> Tensor:
        """Attend from blocks of N queries to the tokens near them, and to a memory of the others.

        Args:
            q: [b h t c].
            rotated: [b h t …].
            of_queries: holds the numbers of the queries.
            ranks: [b t], how many of the tokens are not after each query.
            tokens: all real ones first.
            memory: [b g c c+1], of the tokens before these.
            owner: [b], the sequence that the memory is of.
            packed: whether rows may hold several sequences.

        Returns:
            [b h t c].
        """
        size = self.segment
        blocks = split_into_blocks(torch.arange(q.shape[2], device=q.device), size)[None]
        ranks = gather_columns(ranks, blocks)
        # The whole chunks of N tokens that end N or more before the first query are in the memory.
        chunk = ((ranks[:, :, 0] - size) // size).clamp(min=0)
        near = chunk[..., None] * size + torch.arange(3 * size, device=q.device)
        sequence, segment = (gather_columns(part, near) for part in tokens[3:5])
        query_sequence, query_segment = (gather_columns(part, blocks) for part in of_queries[3:5])
        seen = near[:, :, None] < ranks[..., None]
        seen = (seen & (sequence[:, :, None] == query_sequence[..., None]))[:, None]
        is_local = (segment[:, :, None] == query_segment[..., None])[:, None]
        keys, rotated_keys, values = (
            repeat_heads(gather_tokens(part, near), self.heads) for part in tokens[:3]
        )
        scores = gather_tokens(rotated, blocks) @ rotated_keys.transpose(-2, -1) * self.scale
        weights = self.drop_weights(masked_softmax(scores, seen & is_local))
        features = map_features(gather_tokens(q, blocks))
        products = features @ map_features(keys).transpose(-2, -1)
        sums = products.masked_fill(~seen | is_local, 0.0) @ append_one(values)
        memories, owners = self.accumulate_memory(tokens, memory, owner, packed=packed)
        is_own = (owners.gather(1, chunk)[..., None] == query_sequence)[:, None, ..., None]
        index = chunk[:, None, :, None, None].expand(-1, self.kv_heads, -1, *memories.shape[3:])
        before = repeat_heads(memories.gather(2, index), self.heads)
        sums = sums + (features @ before).masked_fill(~is_own, 0.0)
        remembered = safe_divide(sums[..., :-1], sums[..., -1:]).to(values.dtype)
        share = self.balance.sigmoid()[:, None, None, None].to(values.dtype)
        out = share * remembered + (1 - share) * (weights.to(values.dtype) @ values)
        return out.flatten(2, 3)[:, :, : q.shape[2]]

    def accumulate_memory(
        self, tokens: Tokens, memory: Tensor | None, owner: Tensor | None, *, packed: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the memory before each chunk of N tokens [b g m c c+1], and whose it is [b m].

        It is that of the sequence of the token before the chunk.
        """
        count = -(-tokens.keys.shape[2] // self.segment)
        columns = torch.arange(count * self.segment, device=tokens.keys.device)
        columns = columns.view(1, count, self.segment)
        sequence = gather_columns(tokens.sequence, columns)
        last = sequence[:, :, -1]
        keys = map_features(gather_tokens(tokens.keys, columns))
        keys = keys * (sequence == last[..., None])[:, None, ..., None]
        values = append_one(gather_tokens(tokens.values, columns))
        additions = keys.transpose(-2, -1) @ values
        if memory is None or owner is None:
            memory, owner = torch.zeros_like(additions[:, :, 0]), torch.full_like(last[:, 0], -1)
        parts = torch.cat([memory[:, :, None], additions], dim=2)
        owners = torch.cat([owner[:, None], last], dim=1)
        if not packed:
            return parts.cumsum(dim=2), owners
        # A matrix, as other sequences must leave no rounding errors.
        is_own = (owners[:, :, None] == owners[:, None]).tril()[:, None]
        sums = is_own.to(parts.dtype) @ parts.flatten(3)
        return sums.view_as(parts), owners

    def update_state(
        self, tokens: Tokens, count: Tensor, memory: Tensor | None, owner: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return what a cache keeps after tokens, of which the first `count` [b 1] are real."""
        last = tokens.gather(count - 1)
        is_own = tokens.real & (tokens.sequence == last.sequence)
        is_earlier = (is_own & (tokens.segment < last.segment))[:, None, :, None]
        keys = map_features(tokens.keys).masked_fill(~is_earlier, 0.0)
        new = keys.transpose(-2, -1) @ append_one(tokens.values)
        if memory is not None and owner is not None:
            new = new + memory * (owner[:, None] == last.sequence)[..., None, None]
        columns = count - self.segment + torch.arange(self.segment, device=count.device)
        kept = tokens.gather(columns)
        is_present = (kept.sequence == last.sequence) & (kept.segment == last.segment)
        real = kept.real & is_present & (columns >= 0)
        return new, last.sequence[:, 0], *kept._replace(real=real)

    def compute_map(self, x: Tensor, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        q, rotated, tokens = self.project_tokens(x, mask, positions, 0)
        ranks = tokens.real.cumsum(dim=1)
        seen = tokens.real[:, None] & (ranks[:, None] <= ranks[..., None])
        seen = (seen & (tokens.sequence[:, None] == tokens.sequence[..., None]))[:, None]
        is_local = (tokens.segment[:, None] == tokens.segment[..., None])[:, None]
        keys, rotated_keys = (repeat_heads(part, self.heads) for part in tokens[:2])
        scores = rotated @ rotated_keys.transpose(-2, -1) * self.scale
        products = map_features(q) @ map_features(keys).transpose(-2, -1)
        products = products.masked_fill(~seen | is_local, 0.0)
        remembered = safe_divide(products, products.sum(dim=-1, keepdim=True))
        share = self.balance.sigmoid()[:, None, None]
        return share * remembered + (1 - share) * masked_softmax(scores, seen & is_local)

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Sum up the memory of each query anew."""
        q, k, v = self.naive_qkv(x, source)
        rotated_q, rotated_k = naive.rotate_qk(self, q, k, positions)
        share = 1 / (1 + torch.exp(-self.balance))
        attended = torch.zeros_like(q)
        for b, h, i in product(*map(range, q.shape[:3])):
            seen = visible[b, i].nonzero()[:, 0]
            if len(seen) == 0:
                continue
            earlier, local = seen.tensor_split([(len(seen) - 1) // self.segment * self.segment])
            scores = rotated_k[b, h, local] @ rotated_q[b, h, i] / math.sqrt(self.head_dim)
            powers = torch.exp(scores - scores.max())
            attended[b, h, i] = (1 - share[h]) * (powers / powers.sum()) @ v[b, h, local]
            if len(earlier):
                memory = naive_features(k[b, h, earlier]).T @ v[b, h, earlier]
                norm = naive_features(k[b, h, earlier]).sum(dim=0)
                feature = naive_features(q[b, h, i])
                attended[b, h, i] += share[h] * (feature @ memory) / (feature @ norm)
        return self.naive_output(attended, x)


def map_features(x: Tensor) -> Tensor:
    """Compute φ(x) = elu(x) + 1 in float32 at least; 2⁻²⁴ where it would round to zero."""
    return (elu(upcast(x)) + 1.0).clamp(min=SMALLEST_ELU)


def append_one(values: Tensor) -> Tensor:
    """Add a channel of ones, whose sum is z, to values [… c], in float32 at least."""
    return pad(upcast(values), (0, 1), value=1.0)


def naive_features(x: Tensor) -> Tensor:
    """Compute φ(x) = elu(x) + 1."""
    return torch.where(x > 0, x + 1, torch.exp(x)).clamp(min=2.0**-24)
