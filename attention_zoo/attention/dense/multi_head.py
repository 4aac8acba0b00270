"""Multi-head attention (Vaswani et al. 2017)."""

from typing import Any

from attention_zoo.attention.softmax import SoftmaxAttention, register_softmax


@register_softmax(
    name="multi_head",
    also_called=("mha", "softmax", "scaled_dot_product"),
    paper="Vaswani et al. 2017, arXiv 1706.03762, §3.2.2",
    equation="softmax(QKᵀ/√c) V per head, joined and projected",
    reference="torch.nn.MultiheadAttention",
)
class MultiHeadAttention(SoftmaxAttention):
    """Several heads attend in parallel, each with its own projections.

    head_i = softmax(Q_i K_iᵀ/√c) V_i,   out = [head_1 … head_h] W_O
    """

    decided_options = ("kv_heads",)

    def __init__(self, **options: Any) -> None:
        super().__init__(kv_heads=None, **options)
