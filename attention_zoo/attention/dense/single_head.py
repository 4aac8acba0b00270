"""Scaled dot-product attention with a single head (Vaswani et al. 2017)."""

from typing import Any

from attention_zoo.attention.softmax import SoftmaxAttention, register_softmax


@register_softmax(
    name="single_head",
    paper="Vaswani et al. 2017, arXiv 1706.03762, eq. 1",
    equation="softmax(QKᵀ/√d) V",
    reference="torch.nn.functional.scaled_dot_product_attention",
)
class SingleHeadAttention(SoftmaxAttention):
    """One head as wide as the model: softmax(QKᵀ/√d) V. Options as of `SoftmaxAttention`."""

    decided_options = ("heads", "kv_heads", "head_dim")

    def __init__(self, **options: Any) -> None:
        super().__init__(heads=1, **options)
