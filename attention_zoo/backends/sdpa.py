"""`torch.nn.functional.scaled_dot_product_attention`: the fastest kernel that the device has."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    visible: Tensor | None,
    causal: bool = False,
    bias: Tensor | None = None,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """As `reference.attend`, whose docstring holds."""
    mask = visible
    if bias is not None:
        # A mask beside `is_causal` is combined by some kernels and refused by others.
        if causal:
            visible = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
            causal = False
        mask = bias.to(q.dtype)
        if visible is not None:
            mask = mask.masked_fill(~visible, float("-inf"))
    return scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal,
        scale=scale,
        enable_gqa=k.shape[1] != q.shape[1],
    )
