"""Scaled cosine attention (Liu et al. 2022)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.attention.softmax import QKV, SoftmaxAttention, register_softmax
from attention_zoo.custom_gradients import NO_LENGTH, unit_vectors
from attention_zoo.errors import UserError
from attention_zoo.masks import Visibility
from attention_zoo.precision import autocast_disabled, upcast

FLOOR = 0.01  # of τ


@register_softmax(
    name="cosine",
    also_called=("swin_v2",),
    paper="Liu et al. 2022 (Swin Transformer V2), arXiv 2111.09883, eq. 2",
    equation="softmax(cos(Q, K)/τ + bias) V",
    reference="closed form",
    deviations="the bias is that of the chosen position, if any, in place of a network's",
    cache="keys of length one, and values",
    search_space={"temperature": (0.03, 0.3)},
)
class CosineAttention(SoftmaxAttention):
    """softmax(cos(Q, K)/τ + bias) V: the length of a query or a key has no effect.

    Every head learns a temperature τ, stored as log(1/τ), which is 0.01 at least.

    Args:
        temperature: τ at the start.
    """

    def __init__(self, *, temperature: float = 0.1, **options: Any) -> None:
        super().__init__(**options)
        if temperature < FLOOR:
            raise UserError(f"temperature must be at least {FLOOR}, got {temperature}.")
        self.scale = 1.0
        self.log_sharpness = nn.Parameter(torch.full((self.heads,), -math.log(temperature)))

    def project_query(self, x: Tensor) -> Tensor:
        """Return [b h q c], whose products with keys of length one are cos(Q, K)/τ."""
        sharpness = self.log_sharpness.clamp(max=-math.log(FLOOR)).exp()
        return unit_vectors(super().project_query(x), epsilon=NO_LENGTH) * sharpness[:, None, None]

    def project_key_value(self, source: Tensor) -> tuple[Tensor, Tensor]:
        k, v = super().project_key_value(source)
        return unit_vectors(k, epsilon=NO_LENGTH).to(k.dtype), v

    def attend(self, qkv: QKV, visible: Visibility) -> Tensor:
        with autocast_disabled(qkv.v):
            return super().attend(upcast_qkv(qkv), visible).to(qkv.v.dtype)

    def weights(self, qkv: QKV, visible: Visibility) -> Tensor:
        with autocast_disabled(qkv.v):
            return super().weights(upcast_qkv(qkv), visible).to(qkv.v.dtype)

    def naive_qkv(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().naive_qkv(x, source)
        q, k = (part / (part**2).sum(dim=-1, keepdim=True).sqrt() for part in (q, k))
        temperatures = torch.exp(-self.log_sharpness).clamp(min=FLOOR)
        return q / temperatures[:, None, None], k, v

    def naive_scores(self, head: int, query: Tensor, keys: Tensor) -> Tensor:
        return keys @ query


def upcast_qkv(qkv: QKV) -> QKV:
    """Return queries, keys and values in float32 at least.

    Scores go up to 1/τ = 100: factors rounded to bfloat16 would make errors of some tenths.
    """
    return qkv._replace(q=upcast(qkv.q), k=upcast(qkv.k), v=upcast(qkv.v))
