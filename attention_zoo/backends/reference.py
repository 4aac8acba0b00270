"""The oracle: softmax attention as the paper writes it, in full."""

import torch
from torch import Tensor

from attention_zoo.masks import Visibility


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    visible: Visibility,
    bias: Tensor | None = None,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """Compute softmax(QKᵀ·scale + bias, masked) V.

    Args:
        q: [b h q c].
        k: [b g k c], each head shared by h / g neighbouring query heads.
        v: [b g k c], likewise.
        visible: which of the q queries see which of the k keys.
        bias: [b|1 h q k], added to the scaled scores.
        scale: factor of the products.
        dropout: probability of dropping a weight.

    Returns:
        [b h q c]; a query that may attend to nothing gets zeros.
    """
    seen = visible.dense(q.device)
    weights = attention_weights(q, k, visible=seen, bias=bias, scale=scale)
    weights = torch.dropout(weights, dropout, train=True)
    return weights @ repeat_heads(v, q.shape[1])


def attention_weights(
    q: Tensor, k: Tensor, *, visible: Tensor | None, bias: Tensor | None = None, scale: float
) -> Tensor:
    """Compute weights [b h q k] whose rows sum to 1, or are zero where no key is visible.

    `visible` is [b|1 1|h q k].
    """
    scores = q @ repeat_heads(k, q.shape[1]).transpose(-2, -1) * scale
    if bias is not None:
        scores = scores + bias
    return masked_softmax(scores, visible)


def masked_softmax(scores: Tensor, visible: Tensor | None) -> Tensor:
    """Compute the softmax over visible keys: zeros elsewhere, and finite gradients everywhere."""
    if visible is None:
        return scores.softmax(dim=-1)
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~visible, lowest).softmax(dim=-1).masked_fill(~visible, 0.0)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Repeat each key/value head for the query heads that share it: [b g k c] -> [b h k c]."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)
