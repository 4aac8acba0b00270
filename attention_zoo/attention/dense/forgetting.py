"""Forgetting attention (Lin et al. 2025)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from attention_zoo.attention import naive
from attention_zoo.attention.softmax import QKV, SoftmaxAttention, register_softmax
from attention_zoo.masks import Visibility
from attention_zoo.precision import upcast


@register_softmax(
    name="forgetting",
    also_called=("fox",),
    paper="Lin et al. 2025, arXiv 2503.02130",
    equation="softmax(QKᵀ/√c + D) V, D_ij = Σ_{j<l≤i} log f_l, f = σ(W x + b)",
    reference="flash-linear-attention naive_forgetting_attn",
    deviations="the attention alone: none of the norms, the output gate and the shifts of "
    "keys and values of the block that the paper calls Pro",
    roles=("causal",),
    positions=("positions", "embeddings", "heads", "width", "scores", "content"),
    cache="keys, values and forget gates",
    # The authors' code has an option that starts with gates near 1.
    search_space={"forget_bias": (2.0, 4.0)},
)
class ForgettingAttention(SoftmaxAttention):
    """Softmax attention in which every new token fades the tokens before it.

        a_ij = softmax_j(q_i·k_j/√c + Σ_{j < l ≤ i} log f_l),   f_l = σ(W x_l + b)

    with a gate f for each head. It needs no encoding. Padded tokens fade nothing. The sums of gates
    are in float32 at least.

    Args:
        forget_bias: added to b at the start; above 0, tokens fade more slowly.
    """

    kv_modules = ("key", "value", "forget")

    def __init__(self, *, forget_bias: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.forget = nn.Linear(self.dim, self.heads)
        self.forget.bias = nn.Parameter(self.forget.bias.detach() + forget_bias)

    def extra_features(self, source: Tensor) -> dict[str, Tensor]:
        gates = self.forget(source).transpose(1, 2)[..., None]
        return {"gates": logsigmoid(upcast(gates))}

    def score_bias(self, qkv: QKV, visible: Visibility) -> Tensor:
        gates = qkv.features["gates"]
        if visible.mask.key_mask is not None:
            columns = visible.columns
            real = visible.mask.key_mask[:, columns.start : columns.stop]
            gates = gates * real[:, None, :, None]
        # The sum over the tokens between is the difference of two sums from the start.
        sums = gates.cumsum(dim=2)
        fading = (sums[:, :, -qkv.q.shape[2] :] - sums.transpose(2, 3)).to(qkv.q.dtype)
        encoding = super().score_bias(qkv, visible)
        return fading if encoding is None else fading + encoding

    def decode_state(self, tokens: int) -> int:
        return super().decode_state(tokens) + self.cached_tokens(tokens) * self.heads

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Sum the gates between each query and key. A token is real where it sees itself."""
        q, k, v = self.naive_qkv(x, source)
        scores = self.naive_score_matrix(q, k, source, visible, positions)
        gates = -torch.log(1 + torch.exp(-naive.linear(self.forget, source)))
        gates = gates * visible.diagonal(dim1=1, dim2=2)[..., None]
        fading = torch.zeros_like(scores)
        for i in range(x.shape[1]):
            for j in range(i):
                fading[:, :, i, j] = gates[:, j + 1 : i + 1].sum(dim=1)
        return self.naive_output(naive.softmax(scores + fading, visible) @ v, x)
