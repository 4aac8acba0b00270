"""Attention by way of landmarks (Xiong et al. 2021)."""

from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.attention.base import Attention, resolve_positions
from attention_zoo.attention.precision import autocast_disabled, upcast
from attention_zoo.backends.reference import masked_softmax
from attention_zoo.caches import Cache
from attention_zoo.errors import UserError
from attention_zoo.masks import Mask
from attention_zoo.zoo import ATTENTION, AttentionCard

ITERATIONS = 6  # of the inverse, as in the paper


@ATTENTION.register(
    AttentionCard(
        name="nystrom",
        paper="Xiong et al. 2021, arXiv 2102.03902",
        equation="softmax(Q K̃ᵀ/√c) softmax(Q̃ K̃ᵀ/√c)⁺ softmax(Q̃ Kᵀ/√c) V + DConv(V), "
        "Q̃ and K̃ means of segments",
        reference="transformers NystromformerSelfAttention",
        deviations="landmarks are means over the real tokens of a row, also where their number is "
        "no multiple of that of the landmarks, or smaller; the inverse starts from the column "
        "sums of each head by itself, where theirs takes the largest of the batch; packed "
        "sequences are refused, as each would need landmarks of its own",
        roles=("global",),
        masks=("key_mask",),
        positions=("positions", "embeddings", "heads"),
        weights="signed",
        cost="t",
    )
)
class NystromAttention(Attention):
    """Softmax attention from m of its rows and columns, those of landmarks Q̃ and K̃:

        A₁ A₂⁺ A₃ V + DConv(V),   A₁ = softmax(Q K̃ᵀ/√c),  A₂ = softmax(Q̃ K̃ᵀ/√c),
                                  A₃ = softmax(Q̃ Kᵀ/√c)

    A landmark is the mean of neighbouring tokens: of n real ones, token p goes to landmark
    ⌊p m/n⌋; of fewer than m, each is its own. A₂⁺ is a pseudo-inverse by iteration. DConv is a
    convolution over places, with one kernel for each head. Work grows with length × m.

    Args:
        landmarks: m.
        convolution: width of the convolution's kernel, in tokens; odd.
    """

    decided_options = ("kv_heads",)

    def __init__(self, *, landmarks: int = 64, convolution: int = 33, **options: Any) -> None:
        super().__init__(kv_heads=None, **options)
        if landmarks < 1:
            raise UserError(f"landmarks must be at least 1, got {landmarks}.")
        if convolution < 1 or convolution % 2 == 0:
            raise UserError(f"convolution must be odd, to have a middle, got {convolution}.")
        self.landmarks = landmarks
        self.window_span = convolution // 2
        self.convolution = nn.Conv2d(
            self.heads,
            self.heads,
            (convolution, 1),
            padding=(self.window_span, 0),
            groups=self.heads,
            bias=False,
        )

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        mask = self.effective_mask(mask, x, context, cache)
        v = self.values(x)
        if mask.key_mask is not None:
            v = v * mask.key_mask[:, None, :, None]
        first, inverse, third = self.factors(x, mask, positions)
        attended = first @ inverse @ (third @ v.to(first.dtype))
        return self.finish(attended.to(v.dtype) + self.convolution(v), x)

    def attention_map(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        """A₁ A₂⁺ A₃, and the convolution as the weights that it gives to neighbours."""
        mask = self.effective_mask(mask, x, context)
        first, inverse, third = self.factors(x, mask, positions)
        at = torch.arange(x.shape[1], device=x.device)
        distance = at[None, :] - at[:, None]
        kernel = self.convolution.weight[:, 0, :, 0]
        near = kernel[:, (distance + self.window_span).clamp(0, 2 * self.window_span)]
        near = near.masked_fill(distance.abs() > self.window_span, 0.0)
        visible = mask.dense(range(len(at)), range(len(at)), device=x.device)
        if visible is not None:
            near = near.masked_fill(~visible, 0.0)
        return first @ inverse @ third + near

    def factors(
        self, x: Tensor, mask: Mask, positions: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A₁ [b h q s], A₂⁺ [b h s s], A₃ [b h s k], in float32 at least."""
        q, k = self.query_and_key(x, positions)
        members, real = self.landmarks_of(x, mask)
        filled = members.any(dim=-1)[:, None, None]
        pairs = filled.transpose(-2, -1) & filled
        with autocast_disabled(x):
            q, k = upcast(q) * self.head_dim**-0.5, upcast(k)
            means = members / members.sum(dim=-1, keepdim=True).clamp(min=1)
            means = means[:, None].to(q.dtype)
            q_means, k_means = means @ q, (means @ k).transpose(-2, -1)
            return (
                masked_softmax(q @ k_means, filled),
                inverse_of(masked_softmax(q_means @ k_means, pairs), pairs),
                masked_softmax(q_means @ k.transpose(-2, -1), real[:, None, None]),
            )

    def query_and_key(self, x: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        k, _ = self.project_key_value(x)
        return self.position.rotate(self.project_query(x), k, resolve_positions(x, positions, None))

    def landmarks_of(self, x: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
        """Which tokens make up which landmark, 1 at them [b|1 s k]; which are real [b|1 k]."""
        length = x.shape[1]
        real = mask.key_mask
        if real is None:
            real = torch.ones(1, length, dtype=torch.bool, device=x.device)
        number = real.sum(dim=1, keepdim=True)
        used = number.clamp(max=self.landmarks)
        slot = (real.cumsum(dim=1) - 1) * used // number.clamp(min=1)
        slots = torch.arange(min(self.landmarks, length), device=x.device)
        return (slot[:, None] == slots[:, None]) & real[:, None], real

    def naive(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        visible: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        """By itself for each set of tokens that is all that some queries see, [b q k]."""
        q, k = self.query_and_key(x, positions)
        v, scale = self.values(x), self.head_dim**-0.5
        kernel = self.convolution.weight[:, 0, :, 0]
        rows = []
        for b in range(len(x)):
            out = torch.zeros_like(v[b])
            for seen in visible[b].unique(dim=0):
                tokens = seen.nonzero()[:, 0]
                if len(tokens) == 0:
                    continue
                own_q, own_k, own_v = (part[b][:, tokens] for part in (q, k, v))
                used = min(self.landmarks, len(tokens))
                landmark = torch.arange(len(tokens)) * used // len(tokens)
                q_means, k_means = (
                    torch.stack([part[:, landmark == a].mean(dim=1) for a in range(used)], dim=1)
                    for part in (own_q, own_k)
                )
                second = (q_means @ k_means.transpose(-2, -1) * scale).softmax(dim=-1)
                third = (q_means @ own_k.transpose(-2, -1) * scale).softmax(dim=-1)
                first = (q[b] @ k_means.transpose(-2, -1) * scale).softmax(dim=-1)
                found = first @ naive_inverse(second) @ third @ own_v
                asking = (visible[b] == seen).all(dim=-1)
                out = out + found * asking[:, None]
            window_span = min(self.window_span, x.shape[1] - 1)
            for offset in range(-window_span, window_span + 1):
                i = torch.arange(max(0, -offset), min(x.shape[1], x.shape[1] - offset))
                seen = visible[b, i, i + offset][:, None]
                near = kernel[:, offset + self.window_span, None, None] * v[b][:, i + offset] * seen
                out = out.index_add(1, i, near)
            rows.append(out)
        return self.finish(torch.stack(rows), x)


def inverse_of(matrix: Tensor, visible: Tensor) -> Tensor:
    """The pseudo-inverse of [b h s s], by a third-order iteration; of each block by itself.

    Z ← Z (13 I − A Z (15 I − A Z (7 I − A Z)))/4 from Aᵀ/(|A|₁ |A|_∞), where |A|_∞ is 1 as rows
    sum to 1. `visible` [b|1 1 s s] are the blocks; rows and columns outside of all remain zero.
    """
    columns = matrix.sum(dim=-2)[:, :, None]
    largest = columns.masked_fill(~visible, 0.0).amax(dim=-1, keepdim=True)
    inverse = matrix.transpose(-2, -1) / largest.masked_fill(largest == 0.0, 1.0)
    one = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    for _ in range(ITERATIONS):
        product = matrix @ inverse
        inner = 15.0 * one - product @ (7.0 * one - product)
        inverse = inverse @ (13.0 * one - product @ inner) / 4.0
    return inverse


def naive_inverse(matrix: Tensor) -> Tensor:
    """The same iteration for whole matrices [h s s], as the paper writes it."""
    columns, rows = matrix.abs().sum(dim=-2).amax(dim=-1), matrix.abs().sum(dim=-1).amax(dim=-1)
    z = matrix.mT / (columns * rows)[:, None, None]
    one = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    for _ in range(ITERATIONS):
        az = matrix @ z
        z = 0.25 * z @ (13 * one - az @ (15 * one - az @ (7 * one - az)))
    return z
