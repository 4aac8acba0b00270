"""Attention to a fixed number of combinations of all tokens (Wang et al. 2020)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.attention import naive
from attention_zoo.attention.base import Attention
from attention_zoo.caches import Cache
from attention_zoo.errors import check_positive
from attention_zoo.masks import Columns, Mask
from attention_zoo.zoo import ATTENTION


@ATTENTION.register(
    name="linformer",
    paper="Wang et al. 2020, arXiv 2006.04768",
    equation="softmax(Q (E K)ᵀ/√c) F V, E and F learned, r × max_length",
    reference="closed form",
    deviations="shorter inputs take the columns of E and F at their tokens' positions; packed "
    "sequences are refused, as each would need separate combinations; E and F start with "
    "variance 1/max_length, so that combined keys are as large as keys",
    roles=("global",),
    masks=("key_mask",),
    positions=("embeddings",),
    weights="signed",
    cost="t",
)
class LinformerAttention(Attention):
    """Queries attend to r combinations of the n tokens.

        softmax(Q (E K)ᵀ/√c) (F V),   E, F [r n]

    The heads of a layer share its two matrices E and F ("headwise sharing"), which have a column
    for each position, so that the length is bounded. A combination mixes tokens of the whole row,
    so that there is no causal form. Padded tokens count as zero in it.

    Args:
        max_length: the largest n, in tokens. A longer input is refused.
        rank: r, the number of combinations.
    """

    decided_options = ("kv_heads",)
    max_length: int

    def __init__(self, *, max_length: int = 1024, rank: int = 64, **options: Any) -> None:
        super().__init__(kv_heads=None, **options)
        check_positive(max_length=max_length, rank=rank)
        self.max_length = max_length
        self.key_combinations = nn.Parameter(torch.randn(rank, max_length) * max_length**-0.5)
        self.value_combinations = nn.Parameter(torch.randn(rank, max_length) * max_length**-0.5)

    def attend_tokens(
        self, x: Tensor, context: Tensor | None, mask: Mask, positions: Tensor, cache: Cache | None
    ) -> Tensor:
        q, (k, v) = self.project_query(x), self.project_key_value(x)
        key_columns, value_columns = self.combinations(positions)
        if mask.key_mask is not None:
            k, v = (part * mask.key_mask[:, None, :, None] for part in (k, v))
        scores = q @ (key_columns @ k).transpose(-2, -1) * self.head_dim**-0.5
        return scores.softmax(dim=-1) @ (value_columns @ v)

    def compute_map(self, x: Tensor, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        """Compute softmax(Q Kᵀ Eᵀ/√c) F, with zeros in Q Kᵀ and in the result for hidden keys."""
        q, (k, _) = self.project_query(x), self.project_key_value(x)
        key_columns, value_columns = self.combinations(positions)
        columns = Columns(0, x.shape[1])
        visible = mask.dense(columns, columns, device=x.device)
        visible = torch.ones((), dtype=torch.bool, device=x.device) if visible is None else visible
        products = (q @ k.transpose(-2, -1)).masked_fill(~visible, 0.0)
        scores = products @ key_columns.transpose(-2, -1) * self.head_dim**-0.5
        return (scores.softmax(dim=-1) @ value_columns).masked_fill(~visible, 0.0)

    def combinations(self, positions: Tensor) -> list[Tensor]:
        """Return the columns of E and F for tokens at positions [b|1 k], [b|1 1 r k] each."""
        matrices = self.key_combinations, self.value_combinations
        return [matrix[:, positions].movedim(0, 1)[:, None] for matrix in matrices]

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Combine, for each query, the tokens that it sees."""
        q, k, v = naive.linear_qkv(self, x)
        columns, seen = positions.expand(len(x), -1), visible.to(x.dtype)
        equation = "r b k, b q k, b h k c -> b h q r c"
        keys = torch.einsum(equation, self.key_combinations[:, columns], seen, k)
        values = torch.einsum(equation, self.value_combinations[:, columns], seen, v)
        scores = torch.einsum("b h q c, b h q r c -> b h q r", q, keys) / math.sqrt(self.head_dim)
        powers = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
        weights = powers / powers.sum(dim=-1, keepdim=True)
        attended = torch.einsum("b h q r, b h q r c -> b h q c", weights, values)
        return naive.linear_output(self.output, attended)
