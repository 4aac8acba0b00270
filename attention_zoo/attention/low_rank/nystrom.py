"""Attention by way of landmarks (Xiong et al. 2021)."""

import math
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.attention import naive
from attention_zoo.attention.base import Attention
from attention_zoo.backends.reference import masked_softmax
from attention_zoo.caches import Cache
from attention_zoo.errors import UserError, check_positive
from attention_zoo.masks import Mask
from attention_zoo.precision import autocast_disabled, safe_divide, upcast
from attention_zoo.zoo import ATTENTION

ITERATIONS = 6  # of the inverse, as in the paper


@ATTENTION.register(
    name="nystrom",
    also_called=("nystromformer",),
    paper="Xiong et al. 2021, arXiv 2102.03902",
    equation="softmax(Q K̃ᵀ/√c) softmax(Q̃ K̃ᵀ/√c)⁺ softmax(Q̃ Kᵀ/√c) V + DConv(V), "
    "Q̃ and K̃ means of tokens",
    reference="transformers NystromformerSelfAttention",
    deviations="landmarks are means over the real tokens of a row, also if their number is no "
    "multiple of that of the landmarks, or smaller; the inverse starts from the column sums "
    "of each head, where theirs takes the largest of the batch; packed sequences are refused, "
    "as each would need separate landmarks",
    roles=("global",),
    masks=("key_mask",),
    positions=("positions", "embeddings", "heads"),
    weights="signed",
    cost="t",
)
class NystromAttention(Attention):
    """Softmax attention from m of its rows and columns, those of landmarks Q̃ and K̃.

        A₁ A₂⁺ A₃ V + DConv(V),   A₁ = softmax(Q K̃ᵀ/√c),  A₂ = softmax(Q̃ K̃ᵀ/√c),
                                  A₃ = softmax(Q̃ Kᵀ/√c)

    A landmark is the mean of neighbouring tokens: token p of n real ones belongs to landmark
    ⌊p m/n⌋; if there are fewer than m, each token is a landmark. A₂⁺ is a pseudo-inverse by
    iteration. DConv is a convolution over tokens, with one kernel for each head. Work grows with
    length × m.

    Args:
        landmarks: m.
        convolution: width of the convolution's kernel, in tokens; odd.
    """

    counts_columns = True
    decided_options = ("kv_heads",)

    def __init__(self, *, landmarks: int = 64, convolution: int = 33, **options: Any) -> None:
        super().__init__(kv_heads=None, **options)
        check_positive(landmarks=landmarks)
        if convolution < 1 or convolution % 2 == 0:
            raise UserError(f"convolution must be odd, to have a middle, got {convolution}.")
        self.landmarks = landmarks
        self.half_width = convolution // 2
        kernel, padding = (convolution, 1), (self.half_width, 0)
        self.convolution = nn.Conv2d(
            self.heads, self.heads, kernel, padding=padding, groups=self.heads, bias=False
        )

    def attend_tokens(
        self, x: Tensor, context: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None
    ) -> Tensor:
        v = self.compute_values(x, mask, positions)
        if mask.key_mask is not None:
            v = v * mask.key_mask[:, None, :, None]
        first, inverse, third = self.factors(x, mask, positions)
        attended = first @ inverse @ (third @ v.to(first.dtype))
        return attended.to(v.dtype) + self.convolution(v)

    def compute_map(self, x: Tensor, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        """Compute A₁ A₂⁺ A₃, and the weights that the convolution gives to neighbours."""
        first, inverse, third = self.factors(x, mask, positions)
        columns = torch.arange(x.shape[1], device=x.device)
        distances = columns[None, :] - columns[:, None]
        kernel = self.convolution.weight[:, 0, :, 0]
        local = kernel[:, (distances + self.half_width).clamp(0, 2 * self.half_width)]
        local = local.masked_fill(distances.abs() > self.half_width, 0.0)
        if mask.key_mask is not None:
            local = local.masked_fill(~mask.key_mask[:, None, None], 0.0)
        return first @ inverse @ third + local

    def factors(self, x: Tensor, mask: Mask, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute A₁ [b h q s], A₂⁺ [b h s s] and A₃ [b h s k], in float32 at least."""
        k, _ = self.project_key_value(x)
        q, k = self.position.rotate(self.project_query(x), k, positions)
        members, real = self.assign_landmarks(x, mask)
        used = members.any(dim=-1)[:, None, None]
        pairs = used.transpose(-2, -1) & used
        with autocast_disabled(x):
            q, k = upcast(q) * self.head_dim**-0.5, upcast(k)
            means = members.to(q.dtype) / members.sum(dim=-1, keepdim=True).clamp(min=1)
            means = means[:, None]
            q_means, k_means = means @ q, (means @ k).transpose(-2, -1)
            return (
                masked_softmax(q @ k_means, used),
                pseudo_inverse(masked_softmax(q_means @ k_means, pairs), pairs),
                masked_softmax(q_means @ k.transpose(-2, -1), real[:, None, None]),
            )

    def assign_landmarks(self, x: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
        """Return which tokens of x form each landmark [b|1 s k], and which are real [b|1 k]."""
        length = x.shape[1]
        real = mask.key_mask
        if real is None:
            real = torch.ones(1, length, dtype=torch.bool, device=x.device)
        number = real.sum(dim=1, keepdim=True)
        used = number.clamp(max=self.landmarks)
        landmark = (real.cumsum(dim=1) - 1) * used // number.clamp(min=1)
        landmarks = torch.arange(min(self.landmarks, length), device=x.device)
        return (landmark[:, None] == landmarks[:, None]) & real[:, None], real

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Compute each set of tokens that some queries see by itself."""
        q, k, v = naive.linear_qkv(self, x)
        q, k = naive.rotate_qk(self, q / math.sqrt(self.head_dim), k, positions)
        rows = []
        for b in range(len(x)):
            out = torch.zeros_like(v[b])
            for seen in visible[b].unique(dim=0):
                if seen.any():
                    tokens = q[b][:, seen], k[b][:, seen], v[b][:, seen]
                    queries = (visible[b] == seen).all(dim=-1)
                    out = out + self.naive_landmarks(q[b], *tokens) * queries[:, None]
            rows.append(out + self.naive_convolution(v[b], visible[b]))
        return naive.linear_output(self.output, torch.stack(rows))

    def naive_landmarks(self, queries: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute A₁ A₂⁺ A₃ V for queries [h q c], with landmarks of tokens q, k, v [h k c]."""
        length = k.shape[1]
        number = min(self.landmarks, length)
        landmark = torch.arange(length) * number // length
        q_means, k_means = (
            torch.stack([part[:, landmark == s].mean(dim=1) for s in range(number)], dim=1)
            for part in (q, k)
        )
        first, second, third = (
            (left @ right.mT).softmax(dim=-1)
            for left, right in ((queries, k_means), (q_means, k_means), (q_means, k))
        )
        return first @ naive_inverse(second) @ third @ v

    def naive_convolution(self, v: Tensor, visible: Tensor) -> Tensor:
        """Convolve values [h k c] over the visible tokens [q k], with one kernel for each head."""
        kernel, out = self.convolution.weight[:, 0, :, 0], torch.zeros_like(v)
        for tap, i in product(range(kernel.shape[1]), range(v.shape[1])):
            j = i + tap - kernel.shape[1] // 2
            if 0 <= j < v.shape[1] and visible[i, j]:
                out[:, i] += kernel[:, tap, None] * v[:, j]
        return out


def pseudo_inverse(matrix: Tensor, visible: Tensor) -> Tensor:
    """Compute the pseudo-inverse of a block of each matrix [b h s s], by a third-order iteration.

        Z ← Z (13 I − A Z (15 I − A Z (7 I − A Z)))/4   from Aᵀ/(|A|₁ |A|_∞)

    |A|_∞ is 1, as rows sum to 1. `visible` [b|1 1 s s] is True in the blocks; rows and columns
    outside of them remain zero.
    """
    columns = matrix.sum(dim=-2)[:, :, None]
    largest = columns.masked_fill(~visible, 0.0).amax(dim=-1, keepdim=True)
    inverse = safe_divide(matrix.transpose(-2, -1), largest)
    one = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    for _ in range(ITERATIONS):
        product = matrix @ inverse
        inner = 15.0 * one - product @ (7.0 * one - product)
        inverse = inverse @ (13.0 * one - product @ inner) / 4.0
    return inverse


def naive_inverse(matrix: Tensor) -> Tensor:
    """Compute the same iteration for whole matrices [h s s], as the paper writes it."""
    columns, rows = matrix.abs().sum(dim=-2).amax(dim=-1), matrix.abs().sum(dim=-1).amax(dim=-1)
    z = matrix.mT / (columns * rows)[:, None, None]
    one = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    for _ in range(ITERATIONS):
        az = matrix @ z
        z = 0.25 * z @ (13 * one - az @ (15 * one - az @ (7 * one - az)))
    return z
