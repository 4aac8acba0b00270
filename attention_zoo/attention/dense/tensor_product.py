"""Tensor product attention (Zhang et al. 2025)."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from attention_zoo.attention import naive
from attention_zoo.attention.softmax import QKV, SoftmaxAttention, register_softmax
from attention_zoo.caches import TokenCache
from attention_zoo.errors import check_positive
from attention_zoo.masks import Mask


@register_softmax(
    name="tensor_product",
    also_called=("tpa",),
    paper="Zhang et al. 2025, arXiv 2501.06425",
    equation="softmax(QKᵀ/√c) V, each of Q, K, V of a token 1/R Σ_r a_r ⊗ b_r",
    reference="closed form",
    deviations="keys and values are put together anew for each step of decoding, where the "
    "authors' later kernel contracts the factors",
    positions=("positions", "embeddings", "heads", "scores", "content"),
    cache="factors of keys and values",
)
class TensorProductAttention(SoftmaxAttention):
    """The heads of a token, a matrix [h c], are a sum of few outer products.

        Q = 1/R Σ_r a_r ⊗ b_r,   a_r of h numbers, b_r of c;   K and V likewise

    The cache keeps the factors only. A rotation acts on the b_r: it is linear, so the keys come out
    rotated.

    Args:
        query_rank: R of the queries.
        key_rank: R_K, of the keys.
        value_rank: R_V, of the values.
    """

    decided_options = ("kv_heads",)
    token_projections = ()  # Heads are products of what is projected.

    def __init__(
        self, *, query_rank: int = 6, key_rank: int = 2, value_rank: int = 2, **options: Any
    ) -> None:
        super().__init__(kv_heads=None, **options)
        check_positive(query_rank=query_rank, key_rank=key_rank, value_rank=value_rank)
        self.key_rank = key_rank
        self.value_rank = value_rank
        ranks = (query_rank, key_rank, value_rank)
        self.query, self.key, self.value = (self.new_projection(rank) for rank in ranks)

    def decode_state(self, tokens: int) -> int:
        numbers = (self.key_rank + self.value_rank) * (self.heads + self.head_dim)
        return self.cached_tokens(tokens) * numbers

    def new_projection(self, rank: int) -> nn.Linear:
        """Create a projection to factors, d -> R·(h + c)."""
        width = rank * (self.heads + self.head_dim)
        projection = nn.Linear(self.dim, width, bias=self.output.bias is not None)
        # Factors of variance one have products of variance one.
        nn.init.normal_(projection.weight, std=self.dim**-0.5)
        return projection

    def factors(self, projection: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Project [b t d] to factors [b r t h] and [b r t c]."""
        joined = rearrange(projection(x), "b t (r n) -> b r t n", n=self.heads + self.head_dim)
        return joined[..., : self.heads], joined[..., self.heads :]

    def project_query(self, x: Tensor) -> Tensor:
        return outer_products(*self.factors(self.query, x))

    def project_key_value(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Project to the factors over channels, [b R_K k c] and [b R_V k c]."""
        return self.factors(self.key, source)[1], self.factors(self.value, source)[1]

    def extra_features(self, source: Tensor) -> dict[str, Tensor]:
        """Return the factors over heads, [b R_K k h] and [b R_V k h]."""
        return {
            "key_heads": self.factors(self.key, source)[0],
            "value_heads": self.factors(self.value, source)[0],
        }

    def project_qkv(
        self, x: Tensor, context: Tensor | None, positions: Tensor, cache: TokenCache | None
    ) -> QKV:
        """Compute keys and values from their factors, which the cache keeps."""
        qkv = super().project_qkv(x, context, positions, cache)
        return qkv._replace(
            k=outer_products(qkv.features["key_heads"], qkv.k),
            v=outer_products(qkv.features["value_heads"], qkv.v),
        )

    def compute_values(self, source: Tensor, mask: Mask, positions: Tensor) -> Tensor:
        return outer_products(*self.factors(self.value, source))

    def naive_qkv(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, c = self.heads, self.head_dim

        def heads(layer: nn.Linear, tokens: Tensor) -> Tensor:
            factors = naive.linear(layer, tokens).unflatten(-1, (-1, h + c)).unbind(dim=-2)
            products = [a[..., :h, None] * a[..., None, h:] for a in factors]
            return (sum(products) / len(products)).transpose(1, 2)

        return heads(self.query, x), heads(self.key, source), heads(self.value, source)


def outer_products(over_heads: Tensor, over_channels: Tensor) -> Tensor:
    """Compute 1/R Σ_r a_r ⊗ b_r for a [b r t h] and b [b r t c]: [b h t c]."""
    total = torch.einsum("b r t h, b r t c -> b h t c", over_heads, over_channels)
    return total / over_heads.shape[1]
