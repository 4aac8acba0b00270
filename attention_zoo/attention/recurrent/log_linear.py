"""Log-linear attention (Guo et al. 2025)."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import softplus

from attention_zoo.attention.precision import autocast_disabled, upcast
from attention_zoo.attention.recurrent.decayed import Heads, Span, State
from attention_zoo.attention.recurrent.fenwick import (
    Buckets,
    Counts,
    bucketed_product,
    chosen,
    level_table,
    with_room,
)
from attention_zoo.attention.recurrent.state_space_dual import StateSpaceDualAttention
from attention_zoo.errors import UserError
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="log_linear",
        paper="Guo et al. 2025, arXiv 2506.04761, §3",
        equation="y_t = Σ_l λ_t^l C_t S_t^l, S_t^l the state of the bucket l of a Fenwick tree",
        reference="flash-linear-attention naive_log_linear_attn",
        deviations="on the state of Mamba-2 only, not on that of the gated delta rule; buckets "
        "count real tokens of the own segment; cost grows with length·log(length)",
        roles=("causal",),
        masks=("causal", "key_mask", "segment_ids"),
        positions=("positions", "embeddings", "heads"),
        cache="a state for each bucket, and the last tokens of the convolution",
        decode_state="h·c·e·ceil(log2(t + 1)) + (w - 1)·(h·e + 2·g·c)",
        cost="t log t",
        weights="signed",
    )
)
class LogLinearAttention(StateSpaceDualAttention):
    """State-space duality with a state for each bucket of a Fenwick tree, instead of one:

        y_t = Σ_l λ_t^l C_t S_t^l + D x_t,   λ_t = softplus(L ⊙ (x_t W_λ))

    Behind n tokens there is a bucket of 2^b tokens for each bit b of n that is set, the largest
    first. So recent tokens are kept apart from distant ones, in ever wider buckets. That of the
    size 2^b has the level b + 1; the token at hand alone has the level 0. States decay as those of
    `state_space_dual`, and with λ = 1 their sum is its state.

    Args:
        max_length: the most tokens of a sequence, which decides how many levels there are.
    """

    decided_options = ("backend",)
    max_length: int

    def __init__(self, *, max_length: int = 16384, **options: Any) -> None:
        super().__init__(backend="torch", **options)
        if max_length < 1:
            raise UserError(f"max_length must be at least 1, got {max_length}.")
        self.max_length = max_length
        levels = (max_length - 1).bit_length() + 1
        self.level = nn.Linear(self.dim, self.heads * levels, bias=self.output.bias is not None)
        self.level_scale = nn.Parameter(torch.ones(self.heads, levels))

    def level_weights(self, x: Tensor) -> Tensor:
        """λ, [b h t l]."""
        raw = rearrange(upcast(self.level(x)), "b t (h l) -> b h t l", h=self.heads)
        return softplus(self.level_scale[:, None] * raw)

    def recur(
        self, heads: Heads, x: Tensor, span: Span, start: int, state: State | None
    ) -> tuple[Tensor, State]:
        q, k, v, decay = span.skip(heads)
        if state is None:
            shape = (len(x), self.heads, self.head_dim, 0, self.value_dim)
            state = q.new_zeros(shape), torch.zeros(len(x), dtype=torch.long, device=x.device)
        buckets = with_room(Buckets(*state), start + x.shape[1])
        counts = counts_of(x, span, buckets.length)
        level_weights = self.level_weights(x)
        with autocast_disabled(x):
            return bucketed_product(q, k, v, decay, level_weights, counts, buckets)

    def recurrent_weights(self, heads: Heads, x: Tensor, visible: Tensor) -> Tensor:
        # Places as a query counts them: in what it sees.
        keys = visible.cumsum(dim=-1) - visible.long()
        queries = visible.tril(-1).sum(dim=-1)
        levels = level_table(x.shape[1]).to(x.device)[queries[..., None], keys]
        weights = chosen(self.level_weights(x), levels.expand(len(x), -1, -1))
        return super().recurrent_weights(heads, x, visible) * weights


def counts_of(x: Tensor, span: Span, held: Tensor) -> Counts:
    """Of the tokens x [b t d], in front of which `held` [b] tokens of a segment stand."""
    real = torch.ones(x.shape[:2], dtype=torch.long, device=x.device)
    if span.key_mask is not None:
        real = span.key_mask.long()
    behind = held[:, None] + real.cumsum(dim=1)
    before = behind - real
    if span.segment_ids is not None:
        others = torch.where(span.begins(x.shape[1]), before, 0).cummax(dim=1).values
        before, behind = before - others, behind - others
    return Counts(before, behind)
