"""Log-linear attention (Guo et al. 2025)."""

from itertools import product
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import softplus

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.fenwick import (
    Buckets,
    bucketed_product,
    count_tokens,
    gather_levels,
    grow_buckets,
    level_table,
)
from attention_zoo.attention.recurrent.state_space_dual import StateSpaceDualAttention
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.errors import check_positive
from attention_zoo.masks import TokenSpan
from attention_zoo.precision import autocast_disabled, upcast
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="log_linear",
        paper="Guo et al. 2025, arXiv 2506.04761, §3",
        equation="y_t = Σ_l λ_t^l C_t S_t^l, S_t^l the state of the bucket l of a Fenwick tree",
        reference="flash-linear-attention naive_log_linear_attn",
        deviations="on the state of Mamba-2 only, not on that of the gated delta rule; buckets "
        "count the real tokens of a segment; cost grows with length·log(length)",
        roles=("causal",),
        masks=("causal", "key_mask", "segment_ids"),
        positions=("positions", "embeddings", "heads"),
        cache="a state for each bucket, and the last tokens of the convolution",
        cost="t log t",
        weights="signed",
    )
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

    decided_options = ("backend",)
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
        logits = rearrange(upcast(self.level(x)), "b t (h l) -> b h t l", h=self.heads)
        return softplus(self.level_scale[:, None] * logits)

    def recur(
        self, steps: Steps, x: Tensor, span: TokenSpan, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        steps = steps.apply_mask(span)
        if not states:
            shape = (len(x), self.heads, self.head_dim, 0, self.value_dim)
            states = steps.q.new_zeros(shape), x.new_zeros(len(x), dtype=torch.long)
        buckets = grow_buckets(Buckets(*states), span.start + x.shape[1])
        positions, lengths = count_tokens(x, span, buckets.lengths)
        level_weights = self.level_weights(x)
        with autocast_disabled(x):
            out, buckets = bucketed_product(steps, level_weights, positions, lengths, buckets)
        return self.add_skip(out, steps, span), buckets

    def state_size(self, tokens: int) -> int:
        return super().state_size(tokens) * tokens.bit_length()

    def implied_weights(self, steps: Steps, x: Tensor, visible: Tensor) -> Tensor:
        # The positions of keys and queries among the keys that a query sees.
        keys = visible.cumsum(dim=-1) - visible.long()
        queries = visible.tril(-1).sum(dim=-1)
        levels = level_table(x.shape[1]).to(x.device)[queries[..., None], keys]
        weights = gather_levels(self.level_weights(x), levels.expand(len(x), -1, -1))
        return super().implied_weights(steps, x, visible) * weights

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


def naive_levels(length: int) -> list[int]:
    """Return the level of each of the tokens before a query, by the bits of their number."""
    levels = []
    for bit in reversed(range(length.bit_length())):
        if length >> bit & 1:
            levels += [bit + 1] * 2**bit
    return levels
