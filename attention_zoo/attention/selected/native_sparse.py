"""Native sparse attention, NSA (Yuan et al. 2025)."""

import math
from itertools import product
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad

from attention_zoo.attention.naive import linear, rank, rotate_heads
from attention_zoo.attention.selected.topk_blocks import TopKBlockAttention, UnpaddedQKV
from attention_zoo.attention.selected.topk_selection import scatter_weights
from attention_zoo.attention.softmax import QKV, register_softmax
from attention_zoo.caches import TokenCache
from attention_zoo.errors import UserError, check_positive

Compression = Literal["mean", "mlp"]


@register_softmax(
    name="native_sparse",
    also_called=("nsa",),
    paper="Yuan et al. 2025, arXiv 2502.11089, §3",
    equation="Σ over compressed, selected and sliding of gate · softmax(q Kᵀ/√c) V",
    reference="flash-linear-attention naive_nsa",
    deviations="as in flash-linear-attention: a block is compressed by its mean; `mlp` compresses "
    "the keys by a network, but not the values, which would leave no weights over tokens; "
    "compressed and selected blocks are the same, so do not overlap; the three branches share keys "
    "and values; gates are a linear layer with a sigmoid. Blocks and the sliding window are "
    "counted over the real tokens of each packed sequence; no other window, which would cut "
    "blocks; no encoding on scores, as a block has no position; decoding compresses blocks anew "
    "from the cached keys and values",
    roles=("causal",),
    masks=("causal", "key_mask", "segment_ids"),
    positions=("positions", "embeddings", "heads"),
    weights="nonnegative",
    chooses="blocks of keys",
)
class NativeSparseAttention(TopKBlockAttention):
    """Three views of the past, each with a gate of sigmoid(W x) for every head.

        compressed: the means of K and V over each block that is whole, with weights p
        selected: all keys of the blocks with the largest p, summed over the heads of a group
        sliding: the last `window` keys

    The first block, the query's own block, up to the query, and the block before it are always
    selected, and count among `blocks`. The paper has block = 64, blocks = 16 and window = 512.

    Args:
        window: number of keys that the sliding branch sees, the query's own included.
        kv_heads: number of key/value heads; the query heads that share one select the same blocks.
        compression: what compresses the keys of a block: their `mean`, or an `mlp` with one hidden
            layer over all of them, each with a learned position in the block added to it.
    """

    fixed_blocks = 3

    def __init__(
        self,
        *,
        window: int,
        kv_heads: int | None = 2,
        compression: Compression = "mean",
        **options: Any,
    ) -> None:
        super().__init__(kv_heads=kv_heads, **options)
        check_positive(window=window)
        if compression not in get_args(Compression):
            raise UserError(
                f"compression must be one of {', '.join(get_args(Compression))}, got "
                f"{compression!r}."
            )
        # Not `self.window`, which would narrow all three branches.
        self.sliding_window = window
        self.gate = nn.Linear(self.dim, 3 * self.heads, bias=False)
        self.compress: nn.Sequential | None = None
        if compression == "mlp":
            width = self.block * self.head_dim
            self.block_positions = nn.Parameter(torch.zeros(self.block, self.head_dim))
            self.compress = nn.Sequential(
                nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.head_dim)
            )

    def project_qkv(
        self, x: Tensor, context: Tensor | None, positions: Tensor, cache: TokenCache | None
    ) -> QKV:
        gates = rearrange(self.gate(x).sigmoid(), "b q (h n) -> b h q n", h=self.heads)
        qkv = super().project_qkv(x, context, positions, cache)
        return qkv._replace(features={"gates": gates})

    def attend_blocks(self, qkv: UnpaddedQKV) -> Tensor:
        values = (qkv.means[1], qkv.v, qkv.v)
        branches = zip(self.weigh_branches(qkv), values, strict=True)
        outputs = [self.sum_selected(weights, v, indices) for (indices, weights), v in branches]
        return sum_branches(outputs, qkv.features["gates"])

    def weigh_blocks(self, qkv: UnpaddedQKV) -> Tensor:
        (means, mean_weights), *branches = self.weigh_branches(qkv)
        # The weight of a mean belongs to the tokens of its block in equal parts.
        numbers = torch.arange(means.shape[3], device=means.device)[None, None, None]
        tokens, _ = self.find_tokens(qkv, numbers)
        weights = mean_weights.repeat_interleave(self.block, dim=-1) / self.block
        keys = qkv.k.shape[2]
        maps = [scatter_weights(w, indices, keys) for indices, w in ((tokens, weights), *branches)]
        return sum_branches(maps, qkv.features["gates"])

    def compute_block_means(self, k: Tensor, v: Tensor, step: int) -> tuple[Tensor, ...]:
        return self.compress_keys(k, step), self.average_blocks(v, step)

    def compress_keys(self, k: Tensor, step: int) -> Tensor:
        """Compress the blocks of k [b g k c] that start at multiples of `step`: [b g s c]."""
        if self.compress is None:
            return self.average_blocks(k, step)
        k = pad(k, (0, 0, 0, max(self.block - k.shape[2], 0)))
        blocks = k.unfold(2, self.block, step).transpose(-2, -1) + self.block_positions
        return self.compress(blocks.flatten(-2))

    def weigh_branches(self, qkv: UnpaddedQKV) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return the indices and the weights of the compressed, selected and sliding branch."""
        means, weights = self.weigh_compressed(qkv)
        selected = self.weigh_best_blocks(qkv, self.score_blocks(qkv, weights))
        return (means, weights), selected, self.weigh_sliding(qkv)

    def weigh_compressed(self, qkv: UnpaddedQKV) -> tuple[Tensor, Tensor]:
        """Return the indices of the means of all blocks [b|1 1 q|1 m]; their weights [b h q m]."""
        indices = self.find_means(qkv)
        numbers = torch.arange(indices.shape[3], device=indices.device)
        is_whole = numbers < (qkv.last - qkv.first + 1)[:, None, :, None] // self.block
        return indices, self.weigh_selected(qkv.q, qkv.means[0], indices, is_whole)

    def score_blocks(self, qkv: UnpaddedQKV, weights: Tensor) -> Tensor:
        """Return the scores [b g q m] by which blocks are selected, from the weights of means."""
        query_block = self.find_query_block(qkv)
        numbers = torch.arange(weights.shape[3], device=weights.device)
        scores = weights.detach().unflatten(1, (self.kv_heads, -1)).sum(dim=2)
        is_fixed = (numbers == 0) | (numbers == query_block - 1) | (numbers == query_block)
        scores = scores.masked_fill(numbers > query_block, float("-inf"))
        return scores.masked_fill(is_fixed, float("inf"))

    def weigh_sliding(self, qkv: UnpaddedQKV) -> tuple[Tensor, Tensor]:
        """Return the keys in the windows of all queries [b|1 1 1 n]; their weights [b h q n]."""
        # From one query to the next the last key moves by one at most.
        steps = torch.arange(1 - self.sliding_window, qkv.q.shape[2], device=qkv.q.device)
        tokens = (qkv.last[:, :1] + steps)[:, None, None]
        first, last = qkv.first[:, None, :, None], qkv.last[:, None, :, None]
        visible = (tokens >= first) & (tokens > last - self.sliding_window) & (tokens <= last)
        tokens = tokens.clamp(0, qkv.k.shape[2] - 1)
        return tokens, self.weigh_selected(qkv.q, qkv.k, tokens, visible)

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Compute the branches for one query and one group of heads at a time."""
        q, k, v = self.naive_qkv(x, source)
        q = rotate_heads(self.position, q, positions, of="query")
        k = rotate_heads(self.position, k, positions, of="key")
        gates = torch.sigmoid(linear(self.gate, x)).unflatten(-1, (self.heads, 3))
        attended = torch.zeros_like(q)
        groups = torch.arange(self.heads).view(self.kv_heads, -1)
        for b, i, heads in product(range(len(x)), range(x.shape[1]), groups):
            seen = visible[b, i].nonzero()[:, 0]
            if len(seen) == 0:
                continue
            queries, keys, values = q[b, heads, i], k[b, heads[0], seen], v[b, heads[0], seen]
            tokens, whole = torch.arange(len(seen)).split(self.block), len(seen) // self.block
            means = [
                part[: whole * self.block].unflatten(0, (whole, self.block)).mean(dim=1)
                for part in (keys, values)
            ]
            if self.compress is not None:
                means[0] = self.naive_compress(
                    keys[: whole * self.block].unflatten(0, (whole, self.block))
                )
            p = self.naive_softmax(queries, means[0]).sum(dim=0)
            last = len(tokens) - 1
            fixed = {0, max(last - 1, 0), last}
            others = [m for m in rank(p.tolist()) if m not in fixed]
            blocks = [*fixed, *others[: self.blocks - len(fixed)]]
            selected = torch.cat([tokens[m] for m in blocks])
            branches = (
                means,
                (keys[selected], values[selected]),
                (keys[-self.sliding_window :], values[-self.sliding_window :]),
            )
            for n, (branch_keys, branch_values) in enumerate(branches):
                output = self.naive_softmax(queries, branch_keys) @ branch_values
                attended[b, heads, i] += gates[b, i, heads, n, None] * output
        return self.naive_output(attended, x)

    def naive_compress(self, blocks: Tensor) -> Tensor:
        """Compute the network of blocks of keys [m B c]: [m c]."""
        assert self.compress is not None
        first, _, second = self.compress
        assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
        tokens = [blocks[:, i] + self.block_positions[i] for i in range(self.block)]
        return linear(second, linear(first, torch.cat(tokens, dim=-1)).clamp(min=0.0))

    def naive_softmax(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the weights [r n] of queries [r c] for keys [n c]."""
        return torch.softmax(queries @ keys.T / math.sqrt(self.head_dim), dim=-1)


def sum_branches(branches: list[Tensor], gates: Tensor) -> Tensor:
    """Sum branches [b h q …], each times its gate [b h q 3]."""
    return (torch.stack(branches, dim=-1) * gates[..., None, :]).sum(dim=-1)
