"""Gated attention (Qiu et al. 2025)."""

from typing import Any, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from attention_zoo.attention import naive
from attention_zoo.attention.dense.qk_norm import QKNorm, QKNormAttention
from attention_zoo.attention.softmax import register_softmax
from attention_zoo.errors import UserError

Gate = Literal["elementwise", "headwise"]


@register_softmax(
    name="gated",
    paper="Qiu et al. 2025, arXiv 2505.06708",
    equation="(softmax(QKᵀ/√c) V ⊙ σ(x W_G)) W_O",
    reference="transformers Qwen3NextAttention",
)
class GatedAttention(QKNormAttention):
    """A gate that depends on the query's token scales every channel of every head, or every head.

        out = (softmax(QKᵀ/√c) V ⊙ σ(x W_G)) W_O

    This is the position G1 of the paper: after attention, before the output projection.

    Args:
        gate: `elementwise`, a number for every channel of a head, or `headwise`, one for the head,
            which costs c times fewer parameters.
        norm: of queries and keys, as those of `qk_norm`; `rms_shared` in Qwen3-Next.
    """

    def __init__(
        self, *, gate: Gate = "elementwise", norm: QKNorm = "none", **options: Any
    ) -> None:
        super().__init__(norm=norm, **options)
        if gate not in get_args(Gate):
            raise UserError(f"gate must be one of {', '.join(get_args(Gate))}, got {gate!r}.")
        width = self.heads * (self.head_dim if gate == "elementwise" else 1)
        self.gate = nn.Linear(self.dim, width, bias=self.output.bias is not None)

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        gate = rearrange(self.gate(x), "b q (h c) -> b h q c", h=self.heads)
        return super().project_output(attended * torch.sigmoid(gate), x)

    def naive_output(self, attended: Tensor, x: Tensor) -> Tensor:
        gates = 1 / (1 + torch.exp(-naive.linear_heads(self.gate, x, self.heads)))
        return super().naive_output(attended * gates, x)
