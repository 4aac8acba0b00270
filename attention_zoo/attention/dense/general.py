"""Attention by a bilinear form (Luong et al. 2015)."""

from typing import Any

from torch import Tensor, nn

from attention_zoo.attention.softmax import Heads, SoftmaxAttention
from attention_zoo.caches import TokenCache
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="general",
        paper="Luong et al. 2015, arXiv 1508.04025, §3.1",
        equation="softmax(x W_i yᵀ) V_i",
        reference="closed form",
        deviations="several heads, and projected values and outputs, as in multi-head attention, "
        "in place of the states themselves and a tanh layer",
        roles=("causal", "global", "cross"),
        masks=("causal", "window", "key_mask", "segment_ids", "query_segment_ids"),
        positions=("positions", "embeddings", "heads", "width", "length", "scores", "content"),
        cache="the tokens themselves, which are the keys of all heads, and values",
        decode_state="t·(d + h·c)",
    )
)
class GeneralAttention(SoftmaxAttention):
    """A head scores the pair of tokens x, y by a matrix W [d d] of its own: s = x W yᵀ, unscaled.

    Multi-head attention does so too, with W = W_Q W_Kᵀ of rank c at most. Here W has full rank, and
    nothing is projected on the side of the keys: all heads share them, and an encoding turns all d
    channels. A head costs as much as d/c heads there.
    """

    decided_options = ("kv_heads",)

    def __init__(self, **options: Any) -> None:
        super().__init__(kv_heads=None, **options)
        self.scale = 1.0
        bias = self.output.bias is not None
        self.query = nn.Linear(self.dim, self.heads * self.dim, bias=bias)
        # So that scores start with about the variance that scaled dot products have.
        nn.init.normal_(self.query.weight, std=1.0 / self.dim)
        del self.key

    @property
    def position_dim(self) -> int:
        return self.dim

    def project_key_value(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """[b k d] -> [b 1 k d], [b h k c]."""
        v = self.value(source).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        return source[:, None], v

    def heads_of(
        self,
        x: Tensor,
        context: Tensor | None,
        positions: Tensor | None,
        cache: TokenCache | None,
    ) -> Heads:
        """As the base's, with the kept keys given to every head."""
        heads = super().heads_of(x, context, positions, cache)
        return heads._replace(k=heads.k.expand(-1, self.heads, -1, -1))

    def naive_scores(self, head: int, query: Tensor, keys: Tensor) -> Tensor:
        return (query * keys).sum(-1)
