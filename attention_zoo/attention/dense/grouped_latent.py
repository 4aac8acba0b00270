"""Grouped latent attention, GLA (Zadouri et al. 2025)."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from attention_zoo.attention import naive
from attention_zoo.attention.dense.multi_head_latent import MultiHeadLatentAttention
from attention_zoo.attention.dense.norms import RMSNorm
from attention_zoo.attention.softmax import register_softmax
from attention_zoo.errors import UserError, check_positive


@register_softmax(
    name="grouped_latent",
    also_called=("gla",),
    paper="Zadouri et al. 2025, arXiv 2505.21487, §3.3.2",
    equation="softmax([Q; Q_R][K; K_R]ᵀ/√(c + r)) V, K_i = L_j W_Ki, V_i = L_j W_Vi, j = ⌊i·n/h⌋",
    reference="closed form",
    deviations="latents are normed before they are cached, where the authors' code norms them "
    "after: the same; cross-attention, whose sides share no positions, has no rotary part; an "
    "encoding that does not rotate leaves it as a part of the keys that the heads share",
    positions=("positions", "embeddings", "heads", "scores"),
    cache="n latents, and one rotary key for all heads",
)
class GroupedLatentAttention(MultiHeadLatentAttention):
    """Neighbouring query heads share a latent, so that latents can be split over devices.

    It is multi-head latent attention with n latents in place of one. Each has a norm of its own,
    and gives the keys and values of h / n heads. The defaults cache as many numbers as there.

    Args:
        latent_heads: number n of latents.
        latent_dim: width l of each latent; default: 2·c, as in the paper.
        query_latent_dim: as of `multi_head_latent`.
        rope_dim: as of `multi_head_latent`.
    """

    latent_widths = 2

    def __init__(self, *, latent_heads: int = 2, **options: Any) -> None:
        super().__init__(**options)
        check_positive(latent_heads=latent_heads)
        if self.heads % latent_heads:
            raise UserError(
                f"heads must be a multiple of latent_heads, got heads={self.heads}, "
                f"latent_heads={latent_heads}."
            )
        self.latent_heads = latent_heads
        shape = (latent_heads, self.latent_dim)
        width, bias = latent_heads * self.latent_dim, self.output.bias is not None
        self.latent = nn.Sequential(
            nn.Linear(self.dim, width, bias=bias), nn.Unflatten(-1, shape), RMSNorm(*shape)
        )

    def decode_state(self, tokens: int) -> int:
        numbers = self.latent_heads * self.latent_dim + self.rope_dim
        return self.cached_tokens(tokens) * numbers

    def project_latents(self, source: Tensor) -> Tensor:
        return self.latent(source).transpose(1, 2)

    def project_up(self, projection: nn.Linear, latents: Tensor) -> Tensor:
        matrices = rearrange(projection.weight, "(n m) l -> n l m", n=self.latent_heads)
        return rearrange(latents @ matrices, "b n k (r c) -> b (n r) k c", c=self.head_dim)

    def naive_key_value(self, source: Tensor) -> tuple[Tensor, Tensor]:
        down, _, norm = self.latent
        assert isinstance(down, nn.Linear) and isinstance(norm, RMSNorm)
        latents = naive.linear_heads(down, source, self.latent_heads)
        latents = naive.rms_norm(latents, norm.weight[:, None], epsilon=1e-6)
        of_heads = naive.repeat_groups(latents, self.heads).unbind(dim=1)
        keys, values = (
            torch.stack(
                [
                    latent @ matrix.T
                    for latent, matrix in zip(of_heads, up.weight.split(self.head_dim), strict=True)
                ],
                dim=1,
            )
            for up in (self.key, self.value)
        )
        return keys, values
