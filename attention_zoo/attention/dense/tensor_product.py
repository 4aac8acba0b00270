"""Tensor product attention (Zhang et al. 2025)."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from attention_zoo.attention.softmax import Heads, SoftmaxAttention
from attention_zoo.caches import TokenCache
from attention_zoo.errors import UserError
from attention_zoo.masks import Mask
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="tensor_product",
        paper="Zhang et al. 2025, arXiv 2501.06425",
        equation="softmax(QKᵀ/√c) V, each of Q, K, V of a token 1/R Σ_r a_r ⊗ b_r",
        reference="closed form",
        deviations="keys and values are put together anew for each step of decoding, where the "
        "authors' later kernel contracts the factors",
        roles=("causal", "global", "cross"),
        masks=("causal", "window", "key_mask", "segment_ids", "query_segment_ids"),
        positions=("positions", "embeddings", "heads", "scores", "content"),
        cache="factors of keys and values",
        decode_state="t·(R_K + R_V)·(h + c)",
    )
)
class TensorProductAttention(SoftmaxAttention):
    """The heads of a token, a matrix [h c], are a sum of few outer products that it projects to:

        Q = 1/R Σ_r a_r ⊗ b_r,   a_r of h numbers, b_r of c;   K and V likewise

    Only factors are kept. A rotation acts on the b_r, which are kept rotated: it is linear, so that
    the keys come out as rotated.

    Args:
        query_rank: R of the queries.
        key_rank, value_rank: R of keys and of values, R_K and R_V.
    """

    decided_options = ("kv_heads",)

    def __init__(
        self,
        *,
        query_rank: int = 6,
        key_rank: int = 2,
        value_rank: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(kv_heads=None, **options)
        ranks = {"query_rank": query_rank, "key_rank": key_rank, "value_rank": value_rank}
        for name, rank in ranks.items():
            if rank < 1:
                raise UserError(f"{name} must be at least 1, got {rank}.")
        self.key_rank = key_rank
        self.value_rank = value_rank
        self.query = self.to_factors(query_rank)
        self.key = self.to_factors(key_rank)
        self.value = self.to_factors(value_rank)

    @property
    def sizes(self) -> dict[str, int]:
        return super().sizes | {"R_K": self.key_rank, "R_V": self.value_rank}

    def to_factors(self, rank: int) -> nn.Linear:
        """d -> R·(h + c)."""
        projection = nn.Linear(
            self.dim, rank * (self.heads + self.head_dim), bias=self.output.bias is not None
        )
        # Factors of variance one, of which each product has it too.
        nn.init.normal_(projection.weight, std=self.dim**-0.5)
        return projection

    def factors(self, projection: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """[b t d] -> [b r t h], [b r t c]."""
        joined = rearrange(projection(x), "b t (r n) -> b r t n", n=self.heads + self.head_dim)
        over_heads, over_channels = joined.split([self.heads, self.head_dim], dim=-1)
        return over_heads, over_channels

    def project_query(self, x: Tensor) -> Tensor:
        return product_of(*self.factors(self.query, x))

    def project_key_value(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """The factors over channels, [b R_K k c] and [b R_V k c]."""
        return self.factors(self.key, source)[1], self.factors(self.value, source)[1]

    def extra_features(self, source: Tensor) -> dict[str, Tensor]:
        """Those over heads, [b R_K k h] and [b R_V k h]."""
        return {
            "key_heads": self.factors(self.key, source)[0],
            "value_heads": self.factors(self.value, source)[0],
        }

    def heads_of(
        self,
        x: Tensor,
        context: Tensor | None,
        positions: Tensor | None,
        cache: TokenCache | None,
    ) -> Heads:
        """As the base's, which keeps factors, with keys and values made of them."""
        heads = super().heads_of(x, context, positions, cache)
        return heads._replace(
            k=product_of(heads.more["key_heads"], heads.k),
            v=product_of(heads.more["value_heads"], heads.v),
        )

    def values(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask = Mask(),
        positions: Tensor | None = None,
    ) -> Tensor:
        return product_of(*self.factors(self.value, x if context is None else context))


def product_of(over_heads: Tensor, over_channels: Tensor) -> Tensor:
    """1/R Σ_r a_r ⊗ b_r for a [b r t h] and b [b r t c]: [b h t c]."""
    total = torch.einsum("b r t h, b r t c -> b h t c", over_heads, over_channels)
    return total / over_heads.shape[1]
