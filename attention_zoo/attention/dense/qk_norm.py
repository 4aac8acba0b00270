"""Attention with normed queries and keys (Henry et al. 2020, Dehghani et al. 2023)."""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from attention_zoo.attention import naive
from attention_zoo.attention.dense.norms import RMSNorm
from attention_zoo.attention.softmax import SoftmaxAttention, register_softmax
from attention_zoo.custom_gradients import NO_LENGTH, unit_vectors
from attention_zoo.errors import UserError

QKNorm = Literal["none", "l2", "rms_per_head", "rms_shared", "rms_full"]


class L2Norm(nn.Module):
    """g·x / |x| of each head, in float32 at least; g is 1, or learned from a start on."""

    def __init__(self, start: float | None = None) -> None:
        super().__init__()
        self.scale = None if start is None else nn.Parameter(torch.tensor(start))

    def forward(self, x: Tensor) -> Tensor:
        unit = unit_vectors(x, epsilon=NO_LENGTH)
        return (unit if self.scale is None else unit * self.scale).to(x.dtype)


HeadNorm = RMSNorm | L2Norm | nn.Identity


@register_softmax(
    name="qk_norm",
    paper="Henry et al. 2020, arXiv 2010.04245; Dehghani et al. 2023, arXiv 2302.05442",
    equation="softmax(norm(Q) norm(K)ᵀ·s) V, s = 1/√c, or learned (l2)",
    reference="transformers Qwen3Attention",
    deviations="Dehghani et al. use LayerNorm, later models RMSNorm; the learned scale of l2 "
    "starts at log2(L² − L) with L = 1024, where Henry et al. take L from the training data",
    cache="normed keys, and values",
)
class QKNormAttention(SoftmaxAttention):
    """softmax(norm(Q) norm(K)ᵀ·s) V: scores stay bounded, however long queries and keys grow.

    The norms come before the encoding's rotation.

    Args:
        norm: which of the norms of this name, or `none`:
            `l2`: x / |x| of each head, and a learned scale s, one for all heads (Henry et al.).
            `rms_per_head`: RMS of each head, with a weight for each.
            `rms_shared`: RMS of each head, with one weight for all (Qwen3).
            `rms_full`: RMS over the whole width, before it is split into heads (OLMo 2).
        norm_epsilon: what RMS adds to the mean of squares; default: 1e-6.
    """

    kv_modules = ("key", "value", "key_norm")

    def __init__(
        self, *, norm: QKNorm = "rms_shared", norm_epsilon: float | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        if norm not in get_args(QKNorm):
            raise UserError(f"norm must be one of {', '.join(get_args(QKNorm))}, got {norm!r}.")
        if norm_epsilon is not None and (norm in ("none", "l2") or norm_epsilon <= 0.0):
            raise UserError(
                "norm_epsilon must be above 0, and is of the norms of RMS, got "
                f"norm_epsilon={norm_epsilon}, norm={norm}."
            )
        self.query_norm, self.key_norm = self.new_norms(norm, norm_epsilon or 1e-6)
        if norm == "l2":
            self.scale = 1.0  # It is part of the queries' norm.

    def new_norms(self, norm: QKNorm, epsilon: float) -> tuple[HeadNorm, HeadNorm]:
        """Create the norms of queries [b h q c] and of keys [b g k c]."""
        h, g, c = self.heads, self.kv_heads, self.head_dim
        all_heads: Any = {"over": (1, 3), "epsilon": epsilon}
        match norm:
            case "none":
                return nn.Identity(), nn.Identity()
            case "l2":
                return L2Norm(math.log2(1024**2 - 1024)), L2Norm()  # for 1,024 tokens
            case "rms_per_head":
                return RMSNorm(h, 1, c, epsilon=epsilon), RMSNorm(g, 1, c, epsilon=epsilon)
            case "rms_shared":
                return RMSNorm(c, epsilon=epsilon), RMSNorm(c, epsilon=epsilon)
            case "rms_full":
                return RMSNorm(h, 1, c, **all_heads), RMSNorm(g, 1, c, **all_heads)

    def project_query(self, x: Tensor) -> Tensor:
        return self.query_norm(super().project_query(x))

    def project_key_value(self, source: Tensor) -> tuple[Tensor, Tensor]:
        k, v = super().project_key_value(source)
        return self.key_norm(k), v

    def naive_qkv(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().naive_qkv(x, source)
        return naive_norm(self.query_norm, q), naive_norm(self.key_norm, k), v

    def naive_scores(self, head: int, query: Tensor, keys: Tensor) -> Tensor:
        scores = keys @ query
        return scores if isinstance(self.key_norm, L2Norm) else scores / math.sqrt(self.head_dim)


def naive_norm(norm: HeadNorm, x: Tensor) -> Tensor:
    """Normalise heads [b h t c], of which neighbours may be copies of one, by definition."""
    if isinstance(norm, nn.Identity):
        return x
    if isinstance(norm, RMSNorm):
        # Copies do not change a mean over all heads.
        mean = (x**2).mean(norm.over, keepdim=True)
        weight: Tensor = norm.weight
        if weight.dim() == 3:
            weight = naive.repeat_groups(weight[None], x.shape[1])
        return x / torch.sqrt(mean + norm.epsilon) * weight
    scale = 1.0 if norm.scale is None else norm.scale
    return scale * x / torch.sqrt((x**2).sum(dim=-1, keepdim=True))
