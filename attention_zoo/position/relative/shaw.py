"""Relative position representations (Shaw et al. 2018)."""

from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.errors import check_positive
from attention_zoo.masks import gather_broadcast
from attention_zoo.position.base import NaiveScoreInputs, PositionalEncoding, ScoreInputs
from attention_zoo.precision import upcast
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="shaw",
    also_called=("relative",),
    paper="Shaw et al. 2018, arXiv 1803.02155, eqs. 3 and 4",
    equation="q_t·(k_s + a^K_{s−t})/√c, Σ_s w_ts (v_s + a^V_{s−t}), s − t clipped to ±k",
    reference="closed form",
    deviations="causal attention has no rows for keys behind the query, which it never sees",
    acts=("content", "values"),
    per_layer=True,
)
class ShawEncoding(PositionalEncoding):
    """Adds to every key and value a learned vector of its distance from the query.

        s_ts = q_t·(k_s + a^K_{clip(s − t)})/√c,   out_t = Σ_s w_ts (v_s + a^V_{clip(s − t)})

    The heads of a layer share the tables a^K and a^V, of 2k + 1 rows; causal: of k + 1. A query is
    multiplied with each row once, and weights are summed by distance before they meet a^V.

    Args:
        clip: k, in tokens; all distances beyond share a row.
    """

    def __init__(self, *, clip: int = 16, **sizes: Any) -> None:
        super().__init__(**sizes)
        check_positive(clip=clip)
        self.clip = clip
        self.ahead = 0 if self.role == "causal" else clip
        rows = clip + self.ahead + 1
        self.key_table = nn.Parameter(torch.empty(rows, self.head_dim))
        self.value_table = nn.Parameter(torch.empty(rows, self.head_dim))
        for table in (self.key_table, self.value_table):
            nn.init.normal_(table, std=self.head_dim**-0.5)

    def content_bias(self, inputs: ScoreInputs) -> Tensor:
        rows = self.rows(inputs.q_positions, inputs.k_positions)
        products = inputs.q @ self.key_table.T.to(inputs.q.dtype)
        return gather_broadcast(products, rows[:, None], dim=-1) * inputs.scale

    def value_bias(self, weights: Tensor, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        rows = self.rows(q_positions, k_positions)
        # In float32 at least: the last row sums many small weights.
        wide = upcast(weights)
        sums = wide.new_zeros(*weights.shape[:3], len(self.value_table))
        sums = sums.scatter_add(-1, rows[:, None].expand_as(weights), wide)
        return sums.to(self.value_table.dtype) @ self.value_table

    def rows(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        """Return the row of the distance s − t of each pair, [b|1 q k]."""
        distance = k_positions[:, None, :] - q_positions[:, :, None]
        return distance.clamp(-self.clip, self.ahead) + self.clip

    def naive_bias(self, inputs: NaiveScoreInputs) -> Tensor:
        rows = self.naive_rows(inputs.q_position, inputs.k_positions)
        return self.key_table[rows] @ inputs.query * inputs.scale

    def naive_values(self, q_position: Tensor, k_positions: Tensor) -> Tensor:
        return self.value_table[self.naive_rows(q_position, k_positions)]

    def naive_rows(self, q_position: Tensor, k_positions: Tensor) -> list[int]:
        """Return the row of the tables for each key."""
        furthest = 0 if self.role == "causal" else self.clip
        distances = (k_positions - q_position).tolist()
        return [min(max(d, -self.clip), furthest) + self.clip for d in distances]
