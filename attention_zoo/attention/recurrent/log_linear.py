"""Log-linear attention (Guo et al. 2025)."""

from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, softplus

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.base import STEP_SEARCH_SPACE, register_recurrent
from attention_zoo.attention.recurrent.state_space_dual import StateSpaceDualAttention
from attention_zoo.attention.recurrent.steps import Steps, sum_after
from attention_zoo.errors import check_positive
from attention_zoo.masks import TokenSpan
from attention_zoo.precision import autocast_disabled

# Tokens computed in parallel between two updates of the buckets; more than for a single state, as
# an update costs more.
UPDATE_INTERVAL = 128


@register_recurrent(
    name="log_linear",
    paper="Guo et al. 2025, arXiv 2506.04761, §3",
    equation="y_t = Σ_l λ_t^l C_t S_t^l, S_t^l the state of the bucket l of a Fenwick tree",
    reference="flash-linear-attention naive_log_linear_attn",
    deviations="on the state of Mamba-2 only, not on that of the gated delta rule; buckets "
    "count the real tokens of a segment; cost grows with length·log(length)",
    positions=("positions", "embeddings", "heads"),
    cache="a state for each bucket, and the last tokens of the convolution",
    cost="t log t",
    search_space=STEP_SEARCH_SPACE,
)
class LogLinearAttention(StateSpaceDualAttention):
    """State-space duality with a state for each bucket of a Fenwick tree, instead of one.

        y_t = Σ_l λ_t^l C_t S_t^l + D x_t,   λ_t = softplus(L ⊙ (x_t W_λ))

    After n tokens there is a bucket of 2^b tokens for each bit b of n that is set, the largest
    first. So recent tokens are separate from distant ones, in ever wider buckets. A bucket of the
    size 2^b has the level b + 1; the token itself has the level 0. States decay as those of
    `state_space_dual`, and with λ = 1 their sum is its state.

    Args:
        max_length: the largest number of tokens of a sequence; it decides the number of levels.
    """

    decided_options = ("backend", "negative_eigenvalues")
    no_decay = ("level_scale",)
    num_states = 2
    max_length: int

    def __init__(self, *, max_length: int = 16384, **options: Any) -> None:
        super().__init__(backend="torch", **options)
        check_positive(max_length=max_length)
        self.max_length = max_length
        levels = (max_length - 1).bit_length() + 1
        self.level = nn.Linear(self.dim, self.heads * levels, bias=self.output.bias is not None)
        self.level_scale = nn.Parameter(torch.ones(self.heads, levels))

    def level_weights(self, x: Tensor) -> Tensor:
        """Compute λ, [b h t l]."""
        return softplus(self.level_scale[:, None] * self.split_heads(self.level(x)))

    def recur(
        self, steps: Steps, x: Tensor, span: TokenSpan, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        steps = steps.apply_mask(span)
        if not states:
            shape = (len(x), self.heads, self.head_dim, 0, self.value_dim)
            states = steps.q.new_zeros(shape), x.new_zeros(len(x), dtype=torch.long)
        bits, length = 0, span.start + x.shape[1]
        # Not by int.bit_length, of which torch.compile makes a constant for each length.
        while 1 << bits <= length:
            bits += 1
        buckets = FenwickTree(pad(states[0], (0, 0, 0, bits - states[0].shape[3])), states[1])
        positions, lengths = count_tokens(x, span, buckets.lengths)
        level_weights = self.level_weights(x)
        with autocast_disabled(x):
            out, buckets = bucketed_product(steps, level_weights, positions, lengths, buckets)
        return self.add_skip(out, steps.v, span), buckets

    def state_size(self, tokens: int) -> int:
        return super().state_size(tokens) * tokens.bit_length()

    def implied_weights(self, steps: Steps, x: Tensor, span: TokenSpan) -> Tensor:
        positions, _ = count_tokens(x, span, x.new_zeros(len(x), dtype=torch.long))
        weights = gather_levels(self.level_weights(x), positions, positions)
        return super().implied_weights(steps, x, span) * weights

    def naive_sums(
        self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, x: Tensor, visible: Tensor
    ) -> Tensor:
        """Compute Σ_l λ_t^l q_t S_t^l, the sum over all tokens that a query sees, one by one."""
        logits = naive.linear_heads(self.level, x, self.heads)
        level_weights = softplus(self.level_scale[:, None] * logits)
        out = torch.zeros_like(v)
        for b, t in product(range(len(x)), range(x.shape[1])):
            seen = visible[b, t].nonzero()[:, 0]
            levels = naive_levels(int((seen < t).sum())) + [0] * int(visible[b, t, t])
            # The decay of each token by those after it, up to the query.
            later = torch.cat([decay[b, :, seen[1:], 0], decay.new_ones(self.heads, 1)], dim=1)
            decays = later.flip(1).cumprod(dim=1).flip(1)[:, : len(seen)]
            scores = (q[b, :, t, None] * k[b, :, seen]).sum(dim=-1)
            weights = level_weights[b, :, t, levels] * decays * scores
            out[b, :, t] = (weights[..., None] * v[b, :, seen]).sum(dim=1)
        return out


class FenwickTree(NamedTuple):
    """The buckets of n tokens: for each bit b of n that is set, the state of 2^b tokens.

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
    """Return the positions of tokens x [b t d] among the real ones of their segments, and lengths.

    The position [b t] of a token is the number of real tokens before it; the length [b t] counts
    the token as well. The segment has `before` [b] tokens before the span.
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
    steps: Steps, level_weights: Tensor, positions: Tensor, lengths: Tensor, buckets: FenwickTree
) -> tuple[Tensor, FenwickTree]:
    """Compute Σ_l λ_i^l q_i S_i^l, S_i^l the decayed sum of k_jᵀv_j in the bucket of level l.

        out_i = Σ_{j ≤ i} λ_i^{l(i, j)} (q_i·k_j) (Π_{j < m ≤ i} a_m) v_j

    where l(i, j) is the number of binary digits of i xor j, for positions i and j in a segment:
    one of the aligned ranges of 2^l positions has j in its left half and i in its right half, and
    that left half is the bucket.

    The steps have a decay log a, [b h t 1]. λ is [b h t l]; positions and lengths, [b t], come from
    `count_tokens`. The buckets before the first token have room for those after the last one. The
    result is [b h t e], with the buckets after the last token.
    """
    outputs = []
    # Counted, as torch.compile makes constants of a range's ends.
    for index in range(-(-steps.q.shape[2] // UPDATE_INTERVAL)):
        chunk = slice(index * UPDATE_INTERVAL, (index + 1) * UPDATE_INTERVAL)
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
    length = q.shape[2]
    is_after = torch.ones(length, length, dtype=torch.bool, device=q.device).tril(-1)
    # [b h i j], the decays after j, up to i: as a sum, which keeps its digits.
    decays = torch.where(is_after, decay, 0.0).cumsum(dim=-2)
    weights = gather_levels(level_weights, positions, positions)
    return ((q @ k.transpose(-2, -1)) * decays.exp() * weights).tril() @ v


def read_buckets(
    q: Tensor, decay: Tensor, level_weights: Tensor, positions: Tensor, buckets: FenwickTree
) -> Tensor:
    """Let the queries of a chunk read the buckets before it, [b h t e]."""
    weights = gather_levels(level_weights, positions, buckets.starts) * decay.cumsum(dim=-2).exp()
    products = (q @ buckets.states.flatten(-2)).unflatten(-1, (weights.shape[-1], -1))
    return (weights[..., None, :] @ products)[..., 0, :]


def update_buckets(
    k: Tensor, v: Tensor, decay: Tensor, positions: Tensor, lengths: Tensor, before: FenwickTree
) -> FenwickTree:
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
    return FenwickTree(factor * moved + added, lengths)


def gather_levels(level_weights: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Gather λ [b h t l] at the levels of positions [b k] for queries at [b t]: [b h t k]."""
    levels = count_digits(queries[:, :, None] ^ keys[:, None, :])
    return level_weights.gather(-1, levels[:, None].expand(-1, level_weights.shape[1], -1, -1))


def count_digits(n: Tensor) -> Tensor:
    """Count the binary digits of integers from 0 on."""
    powers = 2 ** torch.arange(62, device=n.device)
    return torch.bucketize(n, powers, right=True)


def naive_levels(length: int) -> list[int]:
    """Return the level of each of the tokens before a query, by the bits of their number."""
    bits = [bit for bit in reversed(range(length.bit_length())) if length >> bit & 1]
    return [bit + 1 for bit in bits for _ in range(2**bit)]
