"""Gated linear attention (Yang et al. 2023)."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.base import create_low_rank_linear, register_recurrent
from attention_zoo.attention.recurrent.decayed import DecayedAttention
from attention_zoo.attention.recurrent.naive import low_rank_linear
from attention_zoo.errors import UserError, check_positive


@register_recurrent(
    name="gated_linear",
    also_called=("gla",),
    paper="Yang et al. 2023, arXiv 2312.06635, §4",
    equation="S_t = diag(a_t) S_{t−1} + k_tᵀv_t, out_t = q_t S_t, a_t = σ(x_t W₁ W₂ + b)^(1/τ)",
    reference="flash-linear-attention naive_recurrent_gla",
    deviations="q is scaled by 1/√c, which the norm of each head undoes except for its ε; no "
    "encoding on heads: if channels that decay differently were rotated into each other, "
    "weights would no longer depend on distance",
    cache="the state",
    # τ is an option of the authors' layers, 16 here and 8 in `gated_slot`.
    search_space={"temperature": (4.0, 64.0)},
)
class GatedLinearAttention(DecayedAttention):
    """Linear attention with a forget gate for each channel of the keys, computed from the token.

        S_t = diag(a_t) S_{t−1} + k_tᵀ v_t,   out_t = q_t S_t/√c,   a_t = σ(x_t W₁ W₂ + b)^(1/τ)

    A norm for each head and a swish gate follow.

    Args:
        head_dim: width of a head's queries and keys; default: dim / heads / 2.
        expand: width of a head's values, as a multiple of head_dim.
        rank: of W₁ W₂.
        temperature: τ; above 1 it makes the state forget more slowly.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        head_dim: int | None = None,
        expand: int = 2,
        rank: int = 16,
        temperature: float = 16.0,
        **options: Any,
    ) -> None:
        if head_dim is None:
            if heads < 1 or dim % (2 * heads):
                raise UserError(
                    "dim must be a multiple of 2·heads, as keys are half as wide as values, got "
                    f"dim={dim}, heads={heads}. Otherwise give head_dim."
                )
            head_dim = dim // heads // 2
        check_positive(expand=expand, rank=rank)
        if temperature <= 0.0:
            raise UserError(f"temperature must be above 0, got {temperature}.")
        super().__init__(dim=dim, heads=heads, head_dim=head_dim, **options)
        self.set_value_dim(expand * head_dim)
        self.temperature = temperature
        self.forget = create_low_rank_linear(dim, rank, heads * head_dim, bias=True)

    def log_decay(self, x: Tensor) -> Tensor:
        return logsigmoid(self.split_heads(self.forget(x))) / self.temperature

    def naive_decay(self, x: Tensor) -> Tensor:
        gates = torch.sigmoid(low_rank_linear(self.forget, x)) ** (1 / self.temperature)
        return naive.split_heads(gates, self.heads)
