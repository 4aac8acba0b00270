"""`torch.nn.functional.scaled_dot_product_attention`: the fastest kernel that the device has."""

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attention_zoo.masks import Visible


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    visible: Visible,
    bias: Tensor | None = None,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """As `reference.attend`, whose docstring holds."""
    # A plain triangle is left to the kernel, which then skips the half that is not visible. A mask
    # beside `is_causal` is combined by some kernels and refused by others.
    triangle = visible.triangle and bias is None
    mask = None if triangle else visible.dense(q.device)
    if bias is not None:
        bias = bias.to(q.dtype)
        mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
    return scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=triangle,
        scale=scale,
        enable_gqa=k.shape[1] != q.shape[1],
    )
