"""Attention with selective rotary positions (Movahedi et al. 2025)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.base import create_low_rank_linear
from attention_zoo.attention.recurrent.convolution import ShortConvolution
from attention_zoo.attention.softmax import QKV, SoftmaxAttention, register_softmax
from attention_zoo.backends.reference import repeat_heads
from attention_zoo.errors import UserError, check_positive
from attention_zoo.masks import TokenSpan, Visibility
from attention_zoo.position.base import check_base
from attention_zoo.precision import upcast

EPSILON = 1e-6  # of the norm of the inputs


@register_softmax(
    name="selective_rotary",
    paper="Movahedi et al. 2025, arXiv 2511.17388, and the authors' code",
    equation="softmax((R_t q_t)·(R_s k_s)/√c) V, R_t turns pair i by ω_i·Σ_{l≤t} φ_l, "
    "φ = conv(W₂W₁ x/‖x‖)",
    reference="closed form",
    roles=("causal",),
    masks=("causal", "key_mask", "segment_ids"),
    positions=("positions", "embeddings", "scores"),
    cache="keys, values and phases",
    deviations="in softmax attention only, and without the gate and the bias of phases that the "
    "authors' code has as options; the whole input is scaled to the length √h, where that code "
    "scales the h parts of it to 1; heads that share a key share its phases; no windows: the "
    "convolution sees beyond them; no encoding that rotates, as it rotates itself, or that reads "
    "queries and keys",
)
class SelectiveRotaryAttention(SoftmaxAttention):
    """Softmax attention with rotary positions that every token moves on as far as it wants.

        φ_t = conv(W₂ W₁ x_t·√h/‖x_t‖),   pair i of q_t and k_t is rotated by ω_i·Σ_{l ≤ t} φ_li

    with ω_i = base^(−2i/c), and a φ for each pair of each key head; were φ always 1, this would be
    `rotary`. A score depends on the phases of the tokens after the key, up to the query. Padding
    turns nothing. Sums and angles are in float32 at least.

    Args:
        base: ω runs from 1 to nearly 1/base.
        rank: of the projection to φ.
        kernel_size: number of tokens that the convolution mixes, including the token itself.
    """

    decided_options = ("window",)
    kv_modules = ()  # The phases turn queries and keys alike, so layers cannot share keys.

    def __init__(
        self, *, base: float = 500000.0, rank: int = 32, kernel_size: int = 4, **options: Any
    ) -> None:
        super().__init__(**options)
        check_base(base)
        check_positive(rank=rank)
        if self.head_dim % 2:
            raise UserError(
                "selective_rotary rotates pairs of channels: it needs an even head width, got "
                f"{self.head_dim}."
            )
        self.base = base
        width = self.kv_heads * self.head_dim // 2
        self.phase = create_low_rank_linear(self.dim, rank, width, bias=False)
        self.phase_convolution = ShortConvolution(width, kernel_size)

    def extra_features(self, source: Tensor) -> dict[str, Tensor]:
        scaled = rms_norm(source, (self.dim,), eps=EPSILON) * (self.heads / self.dim) ** 0.5
        return {"phases": self.phase(scaled)[:, None]}

    def kernel_inputs(self, qkv: QKV, visible: Visibility) -> tuple[QKV, Visibility, Tensor | None]:
        angles = self.angles(qkv.features["phases"][:, 0], visible)
        of_queries = repeat_heads(angles[:, :, -qkv.q.shape[2] :], self.heads)
        q, k = rotate_pairs(qkv.q, of_queries), rotate_pairs(qkv.k, angles)
        return super().kernel_inputs(qkv._replace(q=q, k=k), visible)

    def angles(self, phases: Tensor, visible: Visibility) -> Tensor:
        """Return the angles [b g k c/2] of every key from its phases before the convolution."""
        mask = visible.mask
        phases, _ = self.phase_convolution(upcast(phases), TokenSpan(mask))
        if mask.key_mask is not None:
            phases = phases.masked_fill(~mask.key_mask[..., None], 0.0)
        sums = phases.cumsum(dim=1).unflatten(2, (self.kv_heads, -1)).transpose(1, 2)
        channels = torch.arange(0, self.head_dim, 2, device=sums.device, dtype=sums.dtype)
        return sums * self.base ** (-channels / self.head_dim)

    def decode_state(self, tokens: int) -> int:
        return (
            super().decode_state(tokens)
            + self.cached_tokens(tokens) * self.kv_heads * self.head_dim // 2
        )

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Multiply pairs, as complex numbers, by the waves of running sums of phases."""
        q, k, v = self.naive_qkv(x, source)
        scaled = naive.rms_norm(x, torch.ones(self.dim, dtype=x.dtype), epsilon=EPSILON)
        for layer in self.phase:
            assert isinstance(layer, nn.Linear)
            scaled = naive.linear(layer, scaled)
        phases = self.phase_convolution.naive(scaled * (self.heads / self.dim) ** 0.5, visible)
        phases = phases * visible.diagonal(dim1=1, dim2=2)[..., None]
        phases = naive.repeat_groups(naive.split_heads(phases, self.kv_heads), self.heads)
        count = self.head_dim // 2
        frequencies = torch.tensor([self.base ** (-i / count) for i in range(count)])
        sums, rotated = torch.zeros_like(phases[:, :, 0]), []
        for t in range(x.shape[1]):
            sums = sums + phases[:, :, t]
            waves = torch.exp(1j * sums * frequencies)
            for heads in (q, k):
                pairs = torch.complex(heads[:, :, t, :count], heads[:, :, t, count:]) * waves
                rotated.append(torch.cat([pairs.real, pairs.imag], dim=-1))
        q, k = torch.stack(rotated[::2], dim=2), torch.stack(rotated[1::2], dim=2)
        scores = self.naive_score_matrix(q, k, source, visible, positions)
        return self.naive_output(naive.softmax(scores, visible) @ v, x)


def rotate_pairs(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate channels i and i + c/2 of x [b h t c] by angles [b h t c/2]."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
