"""Attention to the last tokens, and to one compressed entry for each whole block of tokens."""

import math
from itertools import product
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from attention_zoo.attention import naive
from attention_zoo.attention.dense.norms import RMSNorm
from attention_zoo.attention.local.compressor import BlockCompressor
from attention_zoo.attention.local.pattern import BlockSparseAttention, find_sequences
from attention_zoo.attention.online_softmax import (
    PartialSoftmax,
    compute_partial_softmax,
    concatenate,
    extend_blocks,
    gather_tokens,
    merge_partial_softmax,
    split_into_blocks,
)
from attention_zoo.attention.softmax import QKV
from attention_zoo.backends.reference import repeat_heads
from attention_zoo.caches import Cache, TokenCache
from attention_zoo.errors import check_positive
from attention_zoo.masks import Columns, Mask, gather_columns, order_real_first
from attention_zoo.precision import upcast


class CompressedCache(TokenCache):
    """The last tokens of a window, the entries of the present sequence, and tokens to compress.

    Args:
        window: how many of the last tokens are kept for their keys.
        uncompressed: how many are kept for the entries that they may be a part of.
    """

    def __init__(self, window: int, uncompressed: int) -> None:
        super().__init__(window)
        self.uncompressed = TokenCache(uncompressed)
        self.entries: dict[str, Tensor] = {}  # [b 1 s c] each

    def arrange(self, key_mask: Tensor | None, order: Tensor | None) -> None:
        super().arrange(key_mask, order)
        self.uncompressed.arrange(key_mask, order)

    def reorder(self, index: Tensor) -> None:
        super().reorder(index)
        self.uncompressed.reorder(index)
        self.entries = {name: part.index_select(0, index) for name, part in self.entries.items()}


class Entries(NamedTuple):
    """Compressed entries, and which queries see them."""

    features: dict[str, Tensor]  # by the name of their compressor, rotated, [b 1 s c] each
    ends: Tensor  # [b|1 s], the column of the last token of each block; -1 for no entry
    visible: Tensor  # [b|1 1 q s]


class CompressedAttention(BlockSparseAttention):
    """Softmax over the last W tokens, one entry for each whole block of m tokens, and a sink.

        k_j = v_j = norm(x_j W_KV),   q_t = norm(x_t W_Q)
        out_t = Q_tᵀ Σ a_tj K_j v_j,   a_tj ∝ exp(q_tᵀ Q_tᵀ K_j k_j/√c), with exp(s) for no token

    The sum is over the tokens of the window and over the entries that the query sees: those of the
    blocks of its sequence that are whole, up to its own token. An entry is key and value like the
    tokens, and stands at the position of the first token of its block. Tokens of the window are
    also part of entries. All heads share keys and values.

    The encoding multiplies queries by Q and keys by K. As keys are values, the sums are multiplied
    by the transpose of Q at the query. So what a value contributes depends on its distance. An
    encoding that multiplies scores by a factor, as YaRN does, multiplies the sums by it as well.

    The first h attention maps are over the tokens of the window, the last h over the entries, which
    stand at the last token of their block.

    Args:
        block: m, the number of tokens in a block.
        window: W, the number of last tokens that a query sees, itself included.
    """

    decided_options = ("backend", "kv_heads")
    backends = ("blocks",)
    # Whether an entry is also made of the tokens of the block before its own.
    overlap: ClassVar[bool]

    def __init__(self, *, block: int, window: int, **options: Any) -> None:
        super().__init__(backend="blocks", kv_heads=1, **options)
        check_positive(block=block, window=window)
        self.block = block
        # Not `self.window`, which would narrow every mask.
        self.sliding_window = window
        self.key_value_norm = RMSNorm(self.head_dim)
        self.compressor = self.create_compressor()
        self.sinks = nn.Parameter(torch.zeros(self.heads))

    def create_projections(self, bias: bool) -> None:
        self.query = nn.Linear(self.dim, self.heads * self.head_dim, bias=bias)
        self.key_value = nn.Linear(self.dim, self.head_dim, bias=bias)
        self.output = nn.Linear(self.heads * self.head_dim, self.dim, bias=bias)

    def create_compressor(self) -> BlockCompressor:
        """Create a compressor to entries as wide as a head."""
        bias = self.output.bias is not None
        return BlockCompressor(
            self.dim, self.head_dim, block=self.block, overlap=self.overlap, bias=bias
        )

    @property
    def compressors(self) -> dict[str, BlockCompressor]:
        """Return the compressors by the names of their entries."""
        return {"keys": self.compressor}

    @property
    def uncompressed(self) -> int:
        """Return the number of tokens before a new one that may be a part of its entry."""
        return max(self.compressor.span - 1, 1)

    def is_visible(self, query: Any, key: Any, length: Any) -> Any:
        return key <= query  # as itself, or as a part of an entry

    def create_cache(self) -> Cache:
        return CompressedCache(self.sliding_window, self.uncompressed)

    def decode_state(self, tokens: int) -> int:
        state = min(tokens, self.sliding_window) * self.head_dim
        for compressor in self.compressors.values():
            state += tokens // self.block * compressor.width
            state += min(tokens, self.uncompressed) * compressor.num_features
        return state

    def project_query(self, x: Tensor) -> Tensor:
        q = super().project_query(x)
        return rms_norm(upcast(q), (self.head_dim,), eps=1e-6).to(q.dtype)

    def project_key_value(self, source: Tensor) -> tuple[Tensor, Tensor]:
        shared = self.key_value_norm(self.key_value(source))[:, None]
        return shared, shared

    def project_qkv(
        self, x: Tensor, context: Tensor | None, positions: Tensor, cache: TokenCache | None
    ) -> QKV:
        q, k = self.apply_position(self.project_query(x), self.project_key_value(x)[0], positions)
        tokens = {"keys": k, "positions": positions[..., None]}
        if cache is not None:
            tokens["positions"] = tokens["positions"].expand(len(x), -1, -1)
            tokens = cache.append(**tokens)
        k = tokens["keys"]
        return QKV(q, k, k, positions, tokens["positions"][..., 0], {})

    def attend_tokens(
        self, x: Tensor, context: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None
    ) -> Tensor:
        assert cache is None or isinstance(cache, CompressedCache)
        first = 0 if cache is None else cache.length
        qkv = self.project_qkv(x, context, positions, cache)
        entries = self.compress_tokens(x, mask, positions, cache)
        columns = torch.arange(first, first + x.shape[1], device=x.device)
        queries = split_into_blocks(columns, self.sliding_window)
        near = extend_blocks(queries, self.sliding_window - 1, 0)
        in_window = queries[:, :, None] - near[:, :, None] < self.sliding_window
        window = self.attend_blocks(qkv, mask, first + x.shape[1], queries, (near, in_window))
        parts = [window, self.attend_entries(x, qkv, entries, mask), self.attend_sink(window)]
        return self.position.rotate_back(merge_partial_softmax(parts).to(x.dtype), positions)

    def attend_entries(self, x: Tensor, qkv: QKV, entries: Entries, mask: Mask) -> PartialSoftmax:
        """Attend from all queries to the entries that they see, [b h q …]."""
        keys = entries.features["keys"]
        dropout = self.dropout if self.training else 0.0
        return compute_partial_softmax(
            qkv.q, keys, keys, entries.visible, scale=self.scale, dropout=dropout
        )

    def attend_sink(self, part: PartialSoftmax) -> PartialSoftmax:
        """Return a part of the same shape, of a key whose value is zero."""
        score = self.sinks.to(part.maximum.dtype)[:, None].expand_as(part.maximum)
        maximum = score.detach()
        return PartialSoftmax(torch.zeros_like(part.numerator), (score - maximum).exp(), maximum)

    def compress_tokens(
        self, x: Tensor, mask: Mask, positions: Tensor, cache: CompressedCache | None
    ) -> Entries:
        """Compress the blocks that end in x, and join their entries to the cached ones."""
        first = 0 if cache is None else cache.uncompressed.length
        length = first + x.shape[1]
        tokens = self.project_blocks(x)
        tokens["positions"] = positions[..., None]
        if cache is not None:
            tokens["positions"] = tokens["positions"].expand(len(x), -1, -1)
            tokens = cache.uncompressed.append(**tokens)
        token_positions = tokens.pop("positions")[..., 0]
        starts, _ = find_sequences(mask, length, x.device)
        ends = self.find_ends(mask, starts, first)
        offset = length - token_positions.shape[1]
        sequence = gather_columns(starts, ends[:, None])[:, 0]
        blocks = ends - offset, sequence - offset
        block_positions = gather_columns(token_positions, blocks[0][:, None] - self.block + 1)[:, 0]
        features = {
            name: self.rotate_keys(self.compressors[name](part, *blocks), block_positions)
            for name, part in tokens.items()
        }
        if cache is not None:
            ends, features = self.update_entries(cache, starts, ends, features, first)
        columns = torch.arange(first, length, device=x.device)[:, None]
        visible = (ends[:, None] <= columns) & (ends[:, None] >= starts[:, first:, None])
        return Entries(features, ends, visible[:, None])

    def project_blocks(self, x: Tensor) -> dict[str, Tensor]:
        """Project x to what each compressor makes its entries of, [b 1 t f] each."""
        return {"keys": self.compressor.project(x)}

    def rotate_keys(self, k: Tensor, positions: Tensor) -> Tensor:
        """Rotate keys alone."""
        return self.position.rotate(k[:, :0], k, positions)[1]

    def find_ends(self, mask: Mask, starts: Tensor, first: int) -> Tensor:
        """Find the columns from `first` on where blocks end, [b|1 s]; -1 where there are fewer.

        Blocks are counted from the first token of each sequence.
        """
        columns = torch.arange(starts.shape[1], device=starts.device)
        indices = columns - starts
        is_end = (indices >= 0) & ((indices + 1) % self.block == 0)
        if mask.key_mask is not None:
            is_end = is_end & mask.key_mask
        is_end = is_end[:, first:]
        order = order_real_first(is_end)[:, : -(-is_end.shape[1] // self.block)]
        return torch.where(is_end.gather(1, order), order + first, -1)

    def update_entries(
        self,
        cache: CompressedCache,
        starts: Tensor,
        ends: Tensor,
        features: dict[str, Tensor],
        first: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the ends and features of cached and new entries; keep those of the last sequence.

        The cached entries are those of the sequence of the last cached token, from its first on.
        """
        if cache.entries:
            count = next(iter(cache.entries.values())).shape[2]
            numbers = torch.arange(1, count + 1, device=ends.device)
            cached = starts[:, first - 1 : first] + numbers * self.block - 1
            cached = torch.where(cached < first, cached, -1)
            ends = concatenate(cached, ends, dim=1)
            features = {
                name: torch.cat([cache.entries[name], part], dim=2)
                for name, part in features.items()
            }
        is_last = ends >= starts[:, -1:]
        kept = order_real_first(is_last)[:, : starts.shape[1] // self.block]
        cache.entries = {
            name: gather_tokens(part, kept[:, None])[:, :, 0] for name, part in features.items()
        }
        return ends, features

    def compute_map(self, x: Tensor, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        qkv = self.project_qkv(x, None, positions, None)
        entries = self.compress_tokens(x, mask, positions, None)
        columns = Columns(0, x.shape[1])
        near = mask.intersect(window=self.sliding_window).dense(columns, columns, device=x.device)
        keys = torch.cat([qkv.k, entries.features["keys"]], dim=2)
        near = near if near is not None else torch.ones_like(entries.visible[..., :1])
        visible = self.choose_entries(x, qkv, entries)
        visible = concatenate(near.expand(-1, -1, x.shape[1], x.shape[1]), visible, dim=3)
        scores = qkv.q @ keys.transpose(-2, -1) * self.scale
        scores = upcast(scores).masked_fill(~visible, float("-inf"))
        sink = self.sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, sink], dim=3).softmax(dim=-1)[..., :-1].to(x.dtype)
        near, far = weights.split([x.shape[1], entries.ends.shape[1]], dim=3)
        index = entries.ends.clamp(min=0)[:, None, None].expand_as(far)
        return torch.cat([near, torch.zeros_like(near).scatter_add(3, index, far)], dim=1)

    def choose_entries(self, x: Tensor, qkv: QKV, entries: Entries) -> Tensor:
        """Return which entries each query attends to, [b|1 1 q s]."""
        return entries.visible

    @property
    def num_maps(self) -> int:
        return 2 * self.heads

    def compute_values(self, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        """Return rotated tokens for the first h maps, and entries for the last h.

        A channel more has the positions, at which `apply_weights` rotates the sums back.
        """
        tokens = self.rotate_keys(self.project_key_value(source)[0], positions)
        entries = self.compress_tokens(source, mask, positions, None)
        far = entries.features["keys"] * (entries.ends >= 0)[:, None, :, None]
        index = entries.ends.clamp(min=0)[:, None, :, None].expand_as(far)
        far = torch.zeros_like(tokens).scatter_add(2, index, far)
        values = upcast(repeat_heads(torch.cat([tokens, far], dim=1), self.num_maps))
        channel = positions[:, None, :, None].to(values.dtype).expand_as(values[..., :1])
        return torch.cat([values, channel], dim=-1)

    def apply_weights(self, weights: Tensor, values: Tensor) -> Tensor:
        values, positions = values.split([self.head_dim, 1], dim=-1)
        sums = (weights.to(values.dtype) @ values).unflatten(1, (2, -1)).sum(dim=1)
        return self.position.rotate_back(sums.to(weights.dtype), positions[:, 0, :, 0].long())

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Compute one query at a time from all tokens that it sees."""
        attended = x.new_zeros(len(x), self.heads, x.shape[1], self.head_dim)
        for b, i in product(range(len(x)), range(x.shape[1])):
            seen = visible[b, i].nonzero()[:, 0]
            if len(seen):
                attended[b, :, i] = self.naive_query(
                    x[b, seen], positions[b % len(positions), seen]
                )
        return self.naive_output(attended, x)

    def naive_query(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return the sums [h c] of the last of the tokens [n d] that it sees."""
        shared = naive.linear(self.key_value, x)
        shared = naive.rms_norm(shared, self.key_value_norm.weight, epsilon=1e-6)
        q = naive.linear(self.query, x[-1]).view(self.heads, self.head_dim)
        q = naive.rms_norm(q, torch.ones_like(q), epsilon=1e-6)
        chosen = self.naive_choice(x, positions)
        keys = torch.cat([shared[-self.sliding_window :], self.compressor.naive(x)[chosen]])
        first = positions[:: self.block][chosen]
        there, here = torch.cat([positions[-self.sliding_window :], first]), positions[-1]
        rows = []
        for head, sink in enumerate(self.sinks):
            query = self.naive_rotate(q[head], here, head, of="query")
            rotated = self.naive_rotate(keys, there, head, of="key")
            scores = torch.cat([rotated @ query / math.sqrt(self.head_dim), sink[None]])
            powers = torch.exp(scores - scores.max())
            weighted = (powers / powers.sum())[:-1] @ rotated
            # Row i is Q e_i, so that this is Qᵀ times the sum.
            matrix = self.naive_rotate(torch.eye(self.head_dim).to(x), here, head, of="query")
            rows.append(matrix @ weighted)
        return torch.stack(rows)

    def naive_choice(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return the numbers [s] of the entries that the last of tokens [n d] attends to."""
        return torch.arange(len(x) // self.block)

    def naive_rotate(
        self, x: Tensor, positions: Tensor, head: int, *, of: Literal["query", "key"]
    ) -> Tensor:
        """Rotate vectors [… c] at positions that are as many, or one for all."""
        positions = positions.expand(x.shape[:-1])
        return self.position.naive_rotate(x, positions, head=head, length=0, of=of)
