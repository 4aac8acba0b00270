"""Forgetting attention (Lin et al. 2025)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from attention_zoo.attention.dense.definition import heads_in_full, scores_by_definition
from attention_zoo.attention.precision import upcast
from attention_zoo.attention.softmax import Heads, SoftmaxAttention, visible_to
from attention_zoo.masks import Mask
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="forgetting",
        paper="Lin et al. 2025, arXiv 2503.02130",
        equation="softmax(QKᵀ/√c + D) V, D_ij = Σ_{j<l≤i} log f_l, f = σ(W x + b)",
        reference="flash-linear-attention naive_forgetting_attn",
        deviations="the attention alone: none of the norms, the output gate and the shifts of "
        "keys and values of the block that the paper calls Pro",
        roles=("causal",),
        masks=("causal", "window", "key_mask", "segment_ids"),
        positions=("positions", "embeddings", "heads", "width", "scores", "content"),
        cache="keys, values and forget gates",
        decode_state="t·(2·g·c + h)",
    )
)
class ForgettingAttention(SoftmaxAttention):
    """Softmax attention in which every token, as it comes, fades those before it:

        a_ij = softmax_j(q_i·k_j/√c + Σ_{j < l ≤ i} log f_l),   f_l = σ(W x_l + b)

    with a gate f for each head. It needs no encoding. Padded tokens fade nothing. The sums of gates
    are kept in float32 at least.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.forget = nn.Linear(self.dim, self.heads)

    def attention_map(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        mask = self.effective_mask(mask, x, context)
        heads = only_real(self.heads_of(x, context, positions, None), mask)
        return self.weights(heads, visible_to(heads, mask, heads.k.shape[2]))

    def attend(self, heads: Heads, mask: Mask, last: int) -> Tensor:
        return super().attend(only_real(heads, mask), mask, last)

    def extra_features(self, source: Tensor) -> dict[str, Tensor]:
        gates = self.forget(source).transpose(1, 2)[..., None]
        return {"gates": logsigmoid(upcast(gates))}

    def score_bias(self, heads: Heads, visible: Tensor | None) -> Tensor:
        # The sum over what lies between is the difference of two sums from the start.
        sums = heads.more["gates"].cumsum(dim=2)
        fading = (sums[:, :, -heads.q.shape[2] :] - sums.transpose(2, 3)).to(heads.q.dtype)
        encoding = super().score_bias(heads, visible)
        return fading if encoding is None else fading + encoding

    def naive(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        visible: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        """With each sum of gates made for itself. A token is real where it sees itself."""
        heads = self.heads_of(x, context, positions, None)
        k, v = heads_in_full(heads)
        encoding = super().score_bias(heads, visible[:, None])
        scores = scores_by_definition(heads.q, k, encoding, width=self.head_dim)
        token_positions = torch.arange(x.shape[1])
        query, key, between = (
            token_positions[:, None, None],
            token_positions[:, None],
            token_positions,
        )
        inside = ((key < between) & (between <= query)).to(scores.dtype)
        gates = heads.more["gates"][..., 0] * visible.diagonal(dim1=1, dim2=2)[:, None]
        scores = scores + torch.einsum("b h l, q k l -> b h q k", gates, inside)
        powers = torch.exp(scores - scores.amax(dim=-1, keepdim=True).detach()) * visible[:, None]
        weights = powers / powers.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)
        return self.finish(weights @ v, x)


def only_real(heads: Heads, mask: Mask) -> Heads:
    """With the gates of padded tokens open."""
    if mask.key_mask is None:
        return heads
    gates = heads.more["gates"] * mask.key_mask[:, None, :, None]
    return heads._replace(more={**heads.more, "gates": gates})
