"""Multi-query attention (Shazeer 2019)."""

from attention_zoo.attention.softmax import SoftmaxAttention
from attention_zoo.zoo import ATTENTION, AttentionCard, Role


@ATTENTION.register(
    AttentionCard(
        name="multi_query",
        paper="Shazeer 2019, arXiv 1911.02150",
        equation="softmax(Q_i Kᵀ/√c) V",
        reference="closed form",
        roles=("causal", "global", "cross"),
        masks=("causal", "window", "padding", "segments", "query_segments"),
        positions=("embeddings", "heads", "scores"),
        cache="keys and values of one head",
        decode_state="2·t·c",
    )
)
class MultiQueryAttention(SoftmaxAttention):
    """All query heads share one key/value head, in the projections and in the cache."""

    def __init__(
        self,
        *,
        dim: int,
        role: Role,
        heads: int,
        head_dim: int | None = None,
        bias: bool = False,
        dropout: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            dim=dim,
            role=role,
            heads=heads,
            kv_heads=1,
            head_dim=head_dim,
            bias=bias,
            dropout=dropout,
            backend=backend,
        )
