"""Extrapolatable positions, xPos (Sun et al. 2022)."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from attention_zoo.errors import UserError
from attention_zoo.position.rotary.rotary import RotaryEncoding
from attention_zoo.tensor_checks import is_readable
from attention_zoo.zoo import POSITION

SHIFT = 0.4  # gamma of the paper


@POSITION.register(
    name="xpos",
    paper="Sun et al. 2022, arXiv 2212.10554",
    equation="(q_t R_t ζ^t)·(k_s R_s ζ^(−s)): each pair decays by ζ_i^(t − s)",
    reference="x-transformers Attention(RotaryEmbedding(use_xpos))",
    deviations="powers of ζ count from position 0, where torchscale and x-transformers count "
    "from the middle of the sequence so far: products are the same, and keys in a cache stay "
    "right. Growing as they do, they end at max_length. The paper's blockwise attention is a "
    "mechanism's matter",
    acts=("heads",),
    roles=("causal",),
)
class Xpos(RotaryEncoding):
    """Rotary positions that fade with the distance, faster for faster pairs.

        q_t·ζ_i^(t/B),  k_s·ζ_i^(−s/B),  ζ_i = (2i/c + 0.4)/1.4

    after the rotation, so that the product has ζ_i^((t − s)/B). For a key after its query this
    would grow, so attention must be causal. The scales are powers of the position, which exceed the
    range of a type: half of its exponents are reserved for queries and keys, so positions end at
    `max_length`, about 35·B in float32 and bfloat16, about 4·B in float16.

    Args:
        scale_base: B, in tokens.
    """

    def __init__(self, *, scale_base: float = 512.0, **options: Any) -> None:
        super().__init__(**options)
        if scale_base <= 0:
            raise UserError(f"scale_base must be above 0 tokens, got {scale_base}.")
        self.scale_base = scale_base
        self.max_length = self.longest_sequence(torch.float32)

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        self.check_length(q.dtype, positions)
        cos, sin = self.waves(positions, self.frequencies(q))
        decay = (self.exponents(q) + SHIFT) / (1 + SHIFT)
        scale = decay ** (positions[:, None, :, None].to(decay.dtype) / self.scale_base)
        q = self.rotate_pairs(q, scale * cos, scale * sin)
        return q, self.rotate_pairs(k, cos / scale, sin / scale)

    def longest_sequence(self, dtype: torch.dtype) -> int:
        """Return how many tokens the range of a type allows."""
        fastest = SHIFT / (1 + SHIFT)
        return int(self.scale_base * math.log(torch.finfo(dtype).tiny) / 2 / math.log(fastest))

    def check_length(self, dtype: torch.dtype, positions: Tensor) -> None:
        """Refuse positions whose scale exceeds the range of a type."""
        if not is_readable(positions) or not positions.numel():
            return
        last, longest = int(positions.abs().max()), self.longest_sequence(dtype)
        if last >= longest:
            raise UserError(
                f"position=xpos has max_length={longest} in {dtype}, got a sequence of {last + 1} "
                f"tokens: its scales grow with the position. Train with a scale_base above "
                f"{self.scale_base}, or choose another encoding."
            )

    def naive_rotate(
        self, x: Tensor, positions: Tensor, *, head: int, length: int, of: Literal["query", "key"]
    ) -> Tensor:
        rotated = super().naive_rotate(x, positions, head=head, length=length, of=of)
        pairs = torch.arange(self.head_dim // 2)
        of_channel = pairs.repeat(2) if self.layout == "half_split" else pairs.repeat_interleave(2)
        decay = (2 * of_channel.to(x.dtype) / self.head_dim + 0.4) / 1.4
        sign = 1 if of == "query" else -1
        return rotated * decay ** (sign * positions[..., None] / self.scale_base)
