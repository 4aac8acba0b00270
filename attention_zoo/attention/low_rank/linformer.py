"""Attention to a fixed number of combinations of all tokens (Wang et al. 2020)."""

from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.attention.base import Attention, resolve_positions
from attention_zoo.caches import Cache
from attention_zoo.errors import UserError
from attention_zoo.masks import Mask
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="linformer",
        paper="Wang et al. 2020, arXiv 2006.04768",
        equation="softmax(Q (E K)ᵀ/√c) F V, E and F learned, r × max_length",
        reference="closed form",
        deviations="shorter inputs take the columns of E and F at their tokens' places; packed "
        "sequences are refused, as each would need combinations of its own; E and F start with "
        "variance 1/max_length, so that combined keys are as large as keys",
        roles=("global",),
        masks=("key_mask",),
        positions=("embeddings",),
        weights="signed",
        cost="t",
    )
)
class LinformerAttention(Attention):
    """The length is projected from n tokens to r combinations of them, which queries attend to:

        softmax(Q (E K)ᵀ/√c) (F V),   E, F [r n]

    E and F are two matrices of each layer, shared by its heads ("headwise sharing"). They know
    tokens by their places, so that the length is bounded; and a combination holds tokens of the
    whole row, so that there is no causal form. Padded tokens count as zero in it.

    Args:
        max_length: the largest n, in tokens. A longer input is refused.
        rank: r, the number of combinations.
    """

    decided_options = ("kv_heads",)
    max_length: int

    def __init__(self, *, max_length: int = 1024, rank: int = 64, **options: Any) -> None:
        super().__init__(kv_heads=None, **options)
        for name, value in (("max_length", max_length), ("rank", rank)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}.")
        self.max_length = max_length
        self.combined_keys = nn.Parameter(torch.randn(rank, max_length) * max_length**-0.5)
        self.combined_values = nn.Parameter(torch.randn(rank, max_length) * max_length**-0.5)

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
        q, (k, v) = self.project_query(x), self.project_key_value(x)
        of_keys, of_values = self.combinations(x, positions)
        if mask.key_mask is not None:
            k, v = (part * mask.key_mask[:, None, :, None] for part in (k, v))
        scores = q @ (of_keys @ k).transpose(-2, -1) * self.head_dim**-0.5
        return self.finish(scores.softmax(dim=-1) @ (of_values @ v), x)

    def attention_map(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        """softmax(Q Kᵀ Eᵀ/√c) F, where what is not visible of Q Kᵀ, and of the result, is zero."""
        mask = self.effective_mask(mask, x, context)
        q, (k, _) = self.project_query(x), self.project_key_value(x)
        of_keys, of_values = self.combinations(x, positions)
        visible = mask.dense(range(x.shape[1]), range(x.shape[1]), device=x.device)
        visible = torch.ones((), dtype=torch.bool, device=x.device) if visible is None else visible
        products = (q @ k.transpose(-2, -1)).masked_fill(~visible, 0.0)
        scores = products @ of_keys.transpose(-2, -1) * self.head_dim**-0.5
        return (scores.softmax(dim=-1) @ of_values).masked_fill(~visible, 0.0)

    def combinations(self, x: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """The columns of E and F for the tokens of x, [b|1 1 r k] each."""
        at = resolve_positions(x, positions, None)
        of_keys, of_values = (
            matrix[:, at].movedim(0, 1)[:, None]
            for matrix in (self.combined_keys, self.combined_values)
        )
        return of_keys, of_values

    def naive(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        visible: Tensor,
        positions: Tensor | None = None,
    ) -> Tensor:
        """For each query, the combinations of the tokens that it sees. `visible` is [b q k]."""
        q, (k, v) = self.project_query(x), self.project_key_value(x)
        at, seen = resolve_positions(x, positions, None).expand(len(x), -1), visible.to(x.dtype)
        equation = "r b k, b q k, b h k c -> b h q r c"
        keys = torch.einsum(equation, self.combined_keys[:, at], seen, k)
        values = torch.einsum(equation, self.combined_values[:, at], seen, v)
        scores = torch.einsum("b h q c, b h q r c -> b h q r", q, keys) / self.head_dim**0.5
        out = torch.einsum("b h q r, b h q r c -> b h q c", scores.softmax(dim=-1), values)
        return self.finish(out, x)
