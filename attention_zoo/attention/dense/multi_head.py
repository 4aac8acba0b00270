"""Multi-head attention (Vaswani et al. 2017)."""

from typing import Any

from attention_zoo.attention.softmax import SITES_OF_SOFTMAX, SoftmaxAttention
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="multi_head",
        paper="Vaswani et al. 2017, arXiv 1706.03762, §3.2.2",
        equation="softmax(QKᵀ/√c) V per head, joined and projected",
        reference="torch.nn.MultiheadAttention",
        roles=("causal", "global", "cross"),
        masks=("causal", "window", "key_mask", "segment_ids", "query_segment_ids"),
        positions=SITES_OF_SOFTMAX,
        cache="keys and values",
    )
)
class MultiHeadAttention(SoftmaxAttention):
    """Several heads attend in parallel, each with its own projections.

    head_i = softmax(Q_i K_iᵀ/√c) V_i,   out = [head_1 … head_h] W_O
    """

    decided_options = ("kv_heads",)

    def __init__(self, **options: Any) -> None:
        super().__init__(kv_heads=None, **options)
