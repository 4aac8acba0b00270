"""Disentangled attention of DeBERTa (He et al. 2020)."""

import math
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from attention_zoo.errors import check_positive
from attention_zoo.masks import gather_broadcast
from attention_zoo.position.base import NaiveScoreInputs, PositionalEncoding, ScoreInputs
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="disentangled",
    also_called=("deberta",),
    paper="He et al. 2020 (DeBERTa), arXiv 2006.03654, §3.1",
    equation="(q_t·k_s + q_t·P_{δ(t,s)} W_K + k_s·P_{δ(s,t)} W_Q)/√(3c), δ = t − s, clipped",
    reference="transformers DisentangledSelfAttention (deberta_v2)",
    deviations="each layer has a table of its own, which the paper's layers share, beside its "
    "own projections; causal attention too; k_s meets the row of s − t, as the paper says, "
    "where transformers takes that of t − s",
    acts=("heads", "content"),
    per_layer=True,
)
class DisentangledEncoding(PositionalEncoding):
    """Scores also compare queries with the position of the key, and keys with that of the query.

        s_ts = (q_t·k_s + q_t·(P_{δ(t,s)} W_K) + k_s·(P_{δ(s,t)} W_Q))/√(3c)

    δ(t, s) is the row of the distance t − s, from −k to k − 1, clipped, in a table P [2k d]. Its
    projections W_K and W_Q, d -> h·c, are not those of contents. √3 is for the three terms: queries
    are divided by it before attention scores them.

    Args:
        clip: k, in tokens.
    """

    def __init__(self, *, clip: int = 128, **sizes: Any) -> None:
        super().__init__(**sizes)
        check_positive(clip=clip)
        self.clip = clip
        # Of variance one, like the normed tokens, so that the three terms start alike.
        self.table = nn.Parameter(torch.randn(2 * clip, self.dim))
        # Without a bias: the softmax takes no notice of what is the same for all keys.
        self.key = nn.Linear(self.dim, self.heads * self.head_dim, bias=False)
        self.query = nn.Linear(self.dim, self.heads * self.head_dim, bias=False)

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return q / math.sqrt(3), k

    def content_bias(self, inputs: ScoreInputs) -> Tensor:
        distance = inputs.q_positions[:, :, None] - inputs.k_positions[:, None, :]
        by_row = inputs.q @ self.project_table(self.key).to(inputs.q.dtype)
        of_query = gather_broadcast(by_row, self.row(distance)[:, None], dim=-1)
        # The queries come divided, as `rotate` left them; the keys do not.
        by_row = inputs.k / math.sqrt(3) @ self.project_table(self.query).to(inputs.k.dtype)
        of_key = gather_broadcast(by_row, self.row(-distance.mT)[:, None], dim=-1)
        return (of_query + of_key.mT) * inputs.scale

    def project_table(self, projection: nn.Module) -> Tensor:
        """Project all rows of the table for every head: [h c 2k]."""
        return rearrange(projection(self.table), "r (h c) -> h c r", h=self.heads)

    def row(self, distance: Tensor) -> Tensor:
        """Return the row δ of a distance."""
        return distance.clamp(-self.clip, self.clip - 1) + self.clip

    def naive_rotate(
        self, x: Tensor, positions: Tensor, *, head: int, length: int, of: Literal["query", "key"]
    ) -> Tensor:
        return x / math.sqrt(3) if of == "query" else x

    def naive_bias(self, inputs: NaiveScoreInputs) -> Tensor:
        head_rows = slice(inputs.head * self.head_dim, (inputs.head + 1) * self.head_dim)
        biases = []
        for key, distance in zip(inputs.keys, map(int, inputs.distances), strict=True):
            ahead, back = (
                self.table[min(max(d, -self.clip), self.clip - 1) + self.clip]
                for d in (distance, -distance)
            )
            of_query = inputs.query @ (self.key.weight[head_rows] @ ahead)
            of_key = key @ (self.query.weight[head_rows] @ back) / math.sqrt(3)
            biases.append((of_query + of_key) * inputs.scale)
        return torch.stack(biases)
