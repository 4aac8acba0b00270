"""Differential attention (Ye et al. 2024)."""

import math
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from attention_zoo.attention import naive
from attention_zoo.attention.softmax import QKV, SoftmaxAttention, register_softmax
from attention_zoo.custom_gradients import rms_norm
from attention_zoo.errors import UserError
from attention_zoo.masks import Visibility
from attention_zoo.precision import upcast


@register_softmax(
    name="differential",
    also_called=("diff_transformer",),
    paper="Ye et al. 2024, arXiv 2410.05258, §2.1",
    equation="(softmax(Q₁K₁ᵀ/√c) − λ softmax(Q₂K₂ᵀ/√c)) V, normed, ×(1 − λ_init)",
    reference="transformers DiffLlamaAttention",
    deviations="a head is a pair: c here is 2d there, so that heads and parameters count as in "
    "multi-head attention; dropout, which the paper leaves open, drops from both maps apart; "
    "the norm has no weight, which the output projection would take in",
    positions=("positions", "embeddings", "heads", "scores"),
    weights="signed",
)
class DifferentialAttention(SoftmaxAttention):
    """The difference of two maps, which cancels what both give to irrelevant keys.

        head = (1 − λ_init)·RMSNorm((A₁ − λ A₂) V),   A_i = softmax(Q_i K_iᵀ/√(c/2))
        λ = exp(λ_q1·λ_k1) − exp(λ_q2·λ_k2) + λ_init,   λ_init = 0.8 − 0.6·exp(−0.3·layer)

    The two queries, and keys, of a head are the two halves of its c channels; its values have all
    c. In the authors' code these are the neighbouring score heads 2i and 2i + 1, in DiffLlama the
    heads i and i + h: permutations of the same. One λ serves all heads of a layer. An encoding
    rotates each half by itself; a bias is added to both maps.
    """

    no_decay = ("query_mix", "key_mix")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.head_dim % 2:
            raise UserError(
                "differential halves the heads' queries and keys: the head width must be even, got "
                f"{self.head_dim}. Choose other heads, or head_dim."
            )
        self.scale = self.position_dim**-0.5
        # The paper counts layers from 1.
        self.initial_mix = 0.8 - 0.6 * math.exp(-0.3 * self.layer)
        # λ_q and λ_k of both maps, with the deviation of the authors' code.
        self.query_mix = nn.Parameter(torch.randn(2, self.position_dim) * 0.1)
        self.key_mix = nn.Parameter(torch.randn(2, self.position_dim) * 0.1)

    @property
    def position_dim(self) -> int:
        return self.head_dim // 2

    def mix(self) -> Tensor:
        """Return λ, a number."""
        first, second = (self.query_mix * self.key_mix).sum(dim=-1).exp()
        return first - second + self.initial_mix

    def project_query(self, x: Tensor) -> Tensor:
        """Project [b q d] to [b 2h q c/2], the halves of a head next to each other."""
        return split_halves(super().project_query(x))

    def project_key_value(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Project [b k d] to keys [b 2g k c/2] and values [b g k c]."""
        k, v = super().project_key_value(source)
        return split_halves(k), v

    def attend(self, qkv: QKV, visible: Visibility) -> Tensor:
        return self.subtract_maps(super().attend, qkv, visible)

    def weights(self, qkv: QKV, visible: Visibility) -> Tensor:
        return self.subtract_maps(super().weights, qkv, visible)

    def subtract_maps(
        self, function: Callable[[QKV, Visibility], Tensor], qkv: QKV, visible: Visibility
    ) -> Tensor:
        """Return a function of the first map, less λ times that of the second."""
        first, second = (
            function(qkv._replace(q=qkv.q[:, half::2], k=qkv.k[:, half::2]), visible)
            for half in (0, 1)
        )
        return first - self.mix() * second

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        normed = rms_norm(upcast(attended), 1.0 - self.initial_mix, 1e-5)
        return super().project_output(normed.to(attended.dtype), x)

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Compute the paper's equation with both maps in full."""
        q, k, v = self.naive_qkv(x, source)
        width = self.head_dim // 2
        maps = []
        for half in (slice(0, width), slice(width, None)):
            heads = q[..., half], k[..., half]
            scores = self.naive_score_matrix(*heads, source, visible, positions)
            maps.append(naive.softmax(scores, visible))
        initial = 0.8 - 0.6 * math.exp(-0.3 * self.layer)
        (q1, q2), (k1, k2) = self.query_mix, self.key_mix
        mix = torch.exp(q1 @ k1) - torch.exp(q2 @ k2) + initial
        attended = (maps[0] - mix * maps[1]) @ v
        normed = attended / torch.sqrt((attended**2).mean(dim=-1, keepdim=True) + 1e-5)
        return self.naive_output((1.0 - initial) * normed, x)

    def naive_scores(self, head: int, query: Tensor, keys: Tensor) -> Tensor:
        return keys @ query / math.sqrt(self.head_dim / 2)


def split_halves(x: Tensor) -> Tensor:
    """Split heads [b h t c] into halves [b 2h t c/2]."""
    return rearrange(x, "b h t (half c) -> b (h half) t c", half=2)
