"""Functions that naive forms share, and that no `forward` calls."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from attention_zoo.attention.base import Attention
from attention_zoo.position.base import PositionalEncoding


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Compute x Wᵀ + b from the layer's weight and bias."""
    y = torch.einsum("o i, ... i -> ... o", layer.weight, x)
    return y if layer.bias is None else y + layer.bias


def linear_heads(layer: nn.Linear, x: Tensor, heads: int) -> Tensor:
    """Project [b t d] to heads [b h t c]: head i has the i-th c rows of the weight."""
    return split_heads(linear(layer, x), heads)


def split_heads(y: Tensor, heads: int) -> Tensor:
    """Split [b t d] into heads [b h t c]: head i has the i-th c channels."""
    width = y.shape[-1] // heads
    return torch.stack([y[..., h * width : (h + 1) * width] for h in range(heads)], dim=1)


def repeat_groups(x: Tensor, heads: int) -> Tensor:
    """Copy each key/value head for the query heads that share it: [b g k c] to [b h k c]."""
    return x[:, torch.arange(heads) * x.shape[1] // heads]


def linear_qkv(attention: Attention, x: Tensor) -> list[Tensor]:
    """Project [b t d] to queries, keys and values [b h t c], as many heads of each."""
    layers = (attention.query, attention.key, attention.value)
    return [linear_heads(layer, x, attention.heads) for layer in layers]


def rotate_qk(attention: Attention, q: Tensor, k: Tensor, positions: Tensor) -> list[Tensor]:
    """Rotate q and k [b h t c] at positions [b|1 t] by the attention's encoding."""
    return [
        rotate_heads(attention.position, q, positions, of="query"),
        rotate_heads(attention.position, k, positions, of="key"),
    ]


def linear_output(layer: nn.Linear, attended: Tensor) -> Tensor:
    """Project heads [b h t c] to [b t d]: head i meets the i-th c columns of the weight."""
    return linear(layer, torch.cat([*attended.unbind(dim=1)], dim=-1))


def rotate_heads(
    encoding: PositionalEncoding, x: Tensor, positions: Tensor, *, of: Literal["query", "key"]
) -> Tensor:
    """Rotate heads [b h t c] at positions [b|1 t]; not for encodings that act by the length."""
    rotated = [
        encoding.naive_rotate(part, positions, head=head, length=0, of=of)
        for head, part in enumerate(x.unbind(dim=1))
    ]
    return torch.stack(rotated, dim=1)


def softmax(scores: Tensor, visible: Tensor) -> Tensor:
    """Compute exp(s_ij) / Σ_j exp(s_ij) [b h q k] over visible keys [b q k]; zeros for none."""
    lowest = torch.finfo(scores.dtype).min
    largest = scores.detach().masked_fill(~visible[:, None], lowest).amax(dim=-1, keepdim=True)
    powers = torch.exp((scores - largest).clamp(max=0.0)) * visible[:, None]
    sums = powers.sum(dim=-1, keepdim=True)
    return powers / sums.masked_fill(sums == 0.0, 1.0)


def rms_norm(x: Tensor, weight: Tensor, *, epsilon: float) -> Tensor:
    """Compute x / √(mean(x²) + ε) ⊙ w over the last dimension."""
    return x / torch.sqrt((x**2).mean(dim=-1, keepdim=True) + epsilon) * weight


def layer_norm(x: Tensor, *, epsilon: float) -> Tensor:
    """Compute (x − mean(x)) / √(var(x) + ε) over the last dimension."""
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(dim=-1, keepdim=True) + epsilon)


def rank(scores: Sequence[float]) -> list[int]:
    """Return the indices of scores from the largest down; of equal ones, the latest first."""
    return sorted(range(len(scores)), key=lambda i: (scores[i], i), reverse=True)
