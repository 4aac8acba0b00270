"""Inner products of sinusoids as a bias (Chi et al. 2023)."""

from typing import Any

import torch
from torch import Tensor

from attention_zoo.errors import UserError
from attention_zoo.position.absolute.sinusoidal import sinusoids
from attention_zoo.position.base import NaiveScoreInputs, PositionalEncoding, check_base
from attention_zoo.precision import autocast_disabled
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="sandwich",
    paper="Chi et al. 2023, arXiv 2212.10356",
    equation="q_t·k_s/√c + (p_t·p_s − d̄/2)/(8n/h) for head n = 1 … h, "
    "p_t·p_s = Σ_i cos((t − s)·ω_i), ω_i = base^(−2i/d̄)",
    reference="closed form",
    acts=("scores",),
    deviations="i runs from 0 to d̄/2 − 1, as in the sinusoids of Vaswani et al. 2017; without "
    "causality it is symmetric, as the product is",
)
class SandwichEncoding(PositionalEncoding):
    """Adds the inner product of the sinusoidal embeddings of both positions.

        (p_t·p_s − d̄/2) / (8n/h),   p_t·p_s = Σ_i cos((t − s)·ω_i),   ω_i = base^(−2i/d̄)

    for head n = 1 … h. It is 0 at distance 0 and falls roughly with the logarithm of the distance,
    more slowly in later heads. Nothing is learned.

    Args:
        embedding_dim: d̄, the width of the sinusoidal embeddings, whatever the model's is.
        base: the wavelengths run from 2π to base·2π tokens.
    """

    def __init__(self, *, embedding_dim: int = 128, base: float = 10000.0, **sizes: Any) -> None:
        super().__init__(**sizes)
        if embedding_dim < 2 or embedding_dim % 2:
            raise UserError(
                f"position=sandwich needs an even embedding_dim of at least 2, got {embedding_dim}."
            )
        self.embedding_dim = embedding_dim
        check_base(base)
        self.base = base

    def score_bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        q, k = (
            sinusoids(positions, self.embedding_dim, self.base, self.dtype)
            for positions in (q_positions, k_positions)
        )
        # Autocast would multiply in half precision.
        with autocast_disabled(q):
            product = q @ k.transpose(1, 2)
        heads = torch.arange(1, self.heads + 1, dtype=q.dtype, device=q.device)
        compression = 8 * heads[:, None, None] / self.heads
        return (product[:, None] - self.embedding_dim / 2) / compression

    def naive_bias(self, inputs: NaiveScoreInputs) -> Tensor:
        steps = torch.arange(0, self.embedding_dim, 2, dtype=inputs.query.dtype)
        frequencies = self.base ** (-steps / self.embedding_dim)
        products = torch.cos(inputs.distances[:, None] * frequencies).sum(dim=-1)
        return (products - self.embedding_dim / 2) / (8 * (inputs.head + 1) / self.heads)
