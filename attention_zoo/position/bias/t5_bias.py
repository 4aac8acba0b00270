"""Bucketed relative biases of T5 (Raffel et al. 2020)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.errors import UserError
from attention_zoo.position.base import NaiveScoreInputs, PositionalEncoding
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="t5_bias",
    also_called=("t5", "relative"),
    paper="Raffel et al. 2020, arXiv 1910.10683, §2.1",
    equation="q_t·k_s/√c + B_h[bucket(s − t)]",
    reference="transformers T5Attention",
    acts=("scores",),
    deviations="scores are scaled by 1/√c, which T5 folds into its initialisation",
)
class T5BiasEncoding(PositionalEncoding):
    """Adds a learned number for each head and bucket of distances; one table for all layers.

    Half of the buckets hold one distance each, half grow logarithmically up to `max_distance`; all
    longer distances share the last. Causal: all buckets are for the past. Otherwise: half of them
    for each direction.

    Args:
        buckets: their number.
        max_distance: in tokens.
    """

    def __init__(self, *, buckets: int = 32, max_distance: int = 128, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.bidirectional = self.role != "causal"
        exact = buckets // (4 if self.bidirectional else 2)
        if exact < 1 or max_distance <= exact:
            raise UserError(
                f"position=t5_bias needs at least {4 if self.bidirectional else 2} buckets and a "
                f"max_distance above {exact}, got buckets={buckets}, max_distance={max_distance}."
            )
        self.buckets = buckets
        self.max_distance = max_distance
        self.table = nn.Embedding(buckets, self.heads)
        nn.init.normal_(self.table.weight, std=self.dim**-0.5)

    def score_bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        relative = k_positions[:, None, :] - q_positions[:, :, None]
        return self.table(self.bucket(relative)).movedim(-1, 1)

    def bucket(self, relative: Tensor) -> Tensor:
        """Return the bucket of each distance s − t (key minus query)."""
        if self.bidirectional:
            count, distance = self.buckets // 2, relative.abs()
            first = count * (relative > 0)
        else:
            count, distance = self.buckets, (-relative).clamp(min=0)
            first = torch.zeros_like(relative)
        exact = count // 2
        growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(
            self.max_distance / exact
        )
        far = exact + (growth * (count - exact)).long()
        return first + torch.where(distance < exact, distance, far.clamp(max=count - 1))

    def naive_bias(self, inputs: NaiveScoreInputs) -> Tensor:
        rows = []
        for distance in map(int, inputs.distances):
            count, first = self.buckets, 0
            if self.role != "causal":
                count, first = self.buckets // 2, self.buckets // 2 * (distance < 0)
                distance = abs(distance)
            exact, row = count // 2, max(distance, 0)
            if row >= exact:
                octaves = math.log(row / exact) / math.log(self.max_distance / exact)
                row = min(exact + int(octaves * (count - exact)), count - 1)
            rows.append(first + row)
        return self.table.weight[rows, inputs.head]
