"""PaTH attention (Yang et al. 2025)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.base import create_low_rank_linear, register_recurrent
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner, ShortConvolution
from attention_zoo.attention.recurrent.delta_rule import DeltaRuleAttention, delta_rule
from attention_zoo.attention.recurrent.naive import divide_by_length, low_rank_linear
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.backends.reference import masked_softmax
from attention_zoo.custom_gradients import unit_vectors
from attention_zoo.errors import check_dropout, check_positive
from attention_zoo.masks import Columns, Mask, TokenSpan
from attention_zoo.precision import autocast_disabled


@register_recurrent(
    name="path",
    paper="Yang et al. 2025, arXiv 2505.16381",
    equation="softmax_j(q_iᵀ H_i ⋯ H_{j+1} k_j / √c) V,  H = I − β w wᵀ",
    reference="flash-linear-attention naive_path_attn",
    deviations="SiLU before w becomes a unit vector, as in the authors' code; no windows: the "
    "convolution before w sees beyond them; no encoding inside attention, as it is one itself",
    cache="keys, which every new token transforms, values, and the last convolution inputs",
    weights="distribution",
    cost="t²",
)
class PathAttention(DeltaRuleAttention):
    """Softmax attention in which the tokens between a key and a query transform the key.

        a_ij = softmax_j(q_iᵀ H_i H_{i−1} ⋯ H_{j+1} k_j / √c),   H_t = I − β_t w_t w_tᵀ

    with β = 2 σ(W x + b), and w a unit vector computed from x by a projection of low rank, a short
    convolution and SiLU. The delta rule's state holds the keys, and the scores are read from it; so
    the cached keys are that state.

    Args:
        kernel_size: number of tokens that the convolution mixes, including the token itself.
        rank: of the projection to w.
        dropout: probability of dropping a weight in training.
    """

    decided_options = ("backend",)
    num_states = 2

    def __init__(
        self, *, kernel_size: int = 3, rank: int = 32, dropout: float = 0.0, **options: Any
    ) -> None:
        super().__init__(backend="torch", **options)
        check_dropout(dropout)
        check_positive(rank=rank)
        self.dropout = dropout
        width = self.heads * self.head_dim
        self.householder = create_low_rank_linear(self.dim, rank, width, bias=False)
        self.householder_convolution = ShortConvolution(width, kernel_size)
        self.rate = nn.Linear(self.dim, self.heads)

    def project_steps(self, x: Tensor, positions: Tensor, convolve: ConvolutionRunner) -> Steps:
        q, k, v = (self.split_heads(part(x)) for part in (self.query, self.key, self.value))
        vectors = convolve(self.householder_convolution, self.householder(x))
        w = unit_vectors(silu(self.split_heads(vectors)))
        beta = 2.0 * self.split_heads(self.rate(x)).sigmoid()
        return Steps(q * self.head_dim**-0.5, k, v, erase=w, write=beta * w)

    def recur(
        self, steps: Steps, x: Tensor, span: TokenSpan, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Attend; the states are the keys and the values so far."""
        keys, values = states if states else (None, None)
        with autocast_disabled(x):
            weights, keys = self.compute_weights(steps, span, keys)
            values = steps.v if values is None else torch.cat([values, steps.v], dim=2)
            out = torch.dropout(weights, self.dropout, train=self.training) @ values
        return out, (keys, values)

    def compute_weights(
        self, steps: Steps, span: TokenSpan, keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the weights of all keys [b h q k], and the keys [b h k c] after the last step."""
        queries, cached = steps.q.shape[2], 0 if keys is None else keys.shape[2]
        unit_values = pad(steps.use_unit_values().v, (cached, 0))
        state = None if keys is None else pad(keys.transpose(-2, -1), (0, queries))
        # Segments are left to the softmax: keys of earlier ones get no weight.
        real = TokenSpan(Mask(key_mask=span.mask.key_mask), span.start)
        scores, state = delta_rule(steps._replace(v=unit_values).apply_mask(real), state)
        length = cached + queries
        rows = Columns(cached, length)
        visible = span.mask.dense(rows, Columns(0, length), device=scores.device)
        return masked_softmax(scores, visible), state.transpose(-2, -1)

    def implied_weights(self, steps: Steps, x: Tensor, span: TokenSpan) -> Tensor:
        return self.compute_weights(steps, span)[0]

    def state_size(self, tokens: int) -> int:
        return 2 * tokens * self.heads * self.head_dim

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Let each token transform all the keys before it."""
        q, k, v = naive.linear_qkv(self, x)
        vectors = self.householder_convolution.naive(low_rank_linear(self.householder, x), visible)
        w = divide_by_length(silu(naive.split_heads(vectors, self.heads)))
        beta = 2 * torch.sigmoid(naive.linear_heads(self.rate, x, self.heads))
        keys, scores = k[:, :, :0], []
        for t in range(x.shape[1]):
            changes = beta[:, :, t, None] * (keys @ w[:, :, t, :, None]) * w[:, :, t, None]
            keys = keys - changes * visible[:, t, t, None, None, None]  # Padding changes nothing.
            keys = torch.cat([keys, k[:, :, t, None]], dim=2)
            row = (keys @ q[:, :, t, :, None])[..., 0] / math.sqrt(self.head_dim)
            scores.append(pad(row, (0, x.shape[1] - t - 1)))
        weights = naive.softmax(torch.stack(scores, dim=2), visible)
        return naive.linear_output(self.output, weights @ v)
