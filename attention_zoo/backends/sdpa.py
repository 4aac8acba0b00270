"""`torch.nn.functional.scaled_dot_product_attention`: the fastest kernel that the device has."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from attention_zoo.custom_gradients import differentiate, needs_formula
from attention_zoo.masks import Visibility
from attention_zoo.precision import autocast_disabled, is_autocast_enabled
from attention_zoo.tensor_checks import is_transformed

# Tokens. At 64, half precision takes four times as long as float32 to differentiate, at 256 as
# long, and beyond less.
LONGEST_WITH_SLOW_GRADIENT = 128


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
    """Compute what `reference.attend` computes."""
    options: dict[str, Any] = {"visible": visible, "scale": scale, "dropout": dropout}
    if has_slow_gradient(q, k, v):
        dtype = torch.get_autocast_dtype("cpu") if is_autocast_enabled(q) else q.dtype
        with autocast_disabled(q):
            q, k, v = (x.to(dtype).float() for x in (q, k, v))
            return attend(q, k, v, bias=bias, **options).to(dtype)
    mask = visible.mask
    padding_only = mask.key_mask is not None and mask.segment_ids is None and not visible.pattern
    # In a type of a small range the channel of `attend_padded` would not lower scores enough.
    wide = torch.finfo(q.dtype).max > 1e30
    if bias is not None and len(bias) == 1 and padding_only and wide:
        return attend_padded(q, k, v, bias=bias, **options)
    # A plain triangle is left to the kernel, which then skips the half that is not visible. A mask
    # beside `is_causal` is combined by some kernels and refused by others.
    triangle = visible.is_causal_square and bias is None
    attn_mask = None if triangle else visible.dense(q.device)
    if bias is not None:
        bias = bias.to(q.dtype)
        attn_mask = bias if attn_mask is None else bias.masked_fill(~attn_mask, float("-inf"))
    value_dim = v.shape[-1]
    if q.device.type == "cpu" and q.shape[-1] != value_dim:
        # A CPU's kernel takes queries, keys and values of one width; all else takes many times as
        # long.
        width = max(q.shape[-1], value_dim)
        q, k, v = (pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    # Under vmap PyTorch chooses a kernel without a gradient for the mask, though it needs one.
    hides_gradient = bias is not None and is_transformed(bias)
    with sdpa_kernel(SDPBackend.MATH) if hides_gradient else nullcontext():
        out = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=attn_mask,
            dropout_p=dropout,
            is_causal=triangle,
            scale=scale,
            enable_gqa=k.shape[1] != q.shape[1],
        )
    return out if out.shape[-1] == value_dim else out[..., :value_dim]


def has_slow_gradient(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Return whether a CPU's kernel has gradients to compute in half precision for a short length.

    Its backward pass then takes several times as long as in float32, whatever the length is; its
    forward pass takes as long.
    """
    if q.device.type != "cpu" or max(q.shape[2], k.shape[2]) > LONGEST_WITH_SLOW_GRADIENT:
        return False
    # Autocast leaves float64 alone.
    is_cast = q.dtype == torch.float32 and is_autocast_enabled(q)
    is_half = is_cast or torch.finfo(q.dtype).bits == 16
    return is_half and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))


def attend_padded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    visible: Visibility,
    bias: Tensor,
    scale: float,
    dropout: float,
) -> Tensor:
    """Attend with a bias [1 h q k] and padding that differs from row to row.

    The kernel takes one mask, and bias and padding together would be [b h q k]. So the padding
    becomes one more channel of the heads, which lowers the scores of padded keys until their
    weights are zero.
    """
    # Autocast converts the kernel's inputs to a type in which too large a number is infinite.
    dtypes = [q.dtype]
    if is_autocast_enabled(q):
        dtypes.append(torch.get_autocast_dtype(q.device.type))
    # Scores are lowered by low², no more than needed: the backward pass computes scores again, and
    # where a query sees nothing, a rounding error of a huge one would have an infinite exponential.
    low = min(2.0**20, *(torch.finfo(dtype).max / 4 for dtype in dtypes)) ** 0.5
    assert visible.mask.key_mask is not None
    columns = slice(visible.columns.start, visible.columns.stop)
    real = pad(visible.mask.key_mask[:, columns], (visible.sinks, 0), value=True)
    padded = ~real[:, None, :, None]
    channel = torch.zeros_like(k[..., :1]).masked_fill(padded, -low)
    # However large a padded key is, its score is −low².
    k = k.masked_fill(padded, 0.0)
    # GPU kernels want widths of whole eights, and those of queries, keys and values to be equal.
    extra = -(q.shape[-1] + 1) % 8
    out = attend(
        torch.cat([q, torch.full_like(q[..., :1], low), q.new_zeros(*q.shape[:-1], extra)], dim=-1),
        torch.cat([k, channel, k.new_zeros(*k.shape[:-1], extra)], dim=-1),
        pad(v, (0, 1 + extra)),
        visible=replace(visible, mask=replace(visible.mask, key_mask=None)),
        bias=bias,
        scale=scale,
        dropout=dropout,
    )
    seen = visible.dense(q.device)
    assert seen is not None
    return out[..., : v.shape[-1]].masked_fill(~seen.any(-1, keepdim=True), 0.0)


def attend_with_sinks(q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor, scale: float) -> Tensor:
    """Attend to earlier keys on a CPU, with a term exp(s) of each head [h] in the denominator.

    All are float32 or float64, heads have one width, and there is a query.
    """
    # The kernel reads channels as neighbours.
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    return cast(Tensor, SinkAttention.apply(q, k, v, sinks, scale))


class SinkAttention(torch.autograd.Function):
    """The kernel's softmax attention times exp(lse − l), where l = log(exp(lse) + exp(s)).

    Weights are exp(score − l), and the sink has the value 0. So the kernel's backward pass, given l
    and these outputs, has the gradients of queries, keys and values.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, scale: float) -> Tensor:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, of_keys = kernel(q, k, v, 0.0, True, scale=scale)
        total = torch.logaddexp(of_keys, sinks[:, None])
        out = out * (of_keys - total).exp_()[..., None]
        ctx.save_for_backward(q, k, v, sinks, out, total)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, out, total = ctx.saved_tensors
        if needs_formula(gradient):
            inputs = q, k, v, sinks, ctx.scale
            return differentiate(
                lambda *x: (weigh_with_sinks(*x),), inputs, (gradient,), ctx.needs_input_grad
            )
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        of_inputs = kernel(gradient, q, k, v, out, total, 0.0, True, scale=ctx.scale)
        of_sinks = None
        if ctx.needs_input_grad[3]:
            weights = (sinks[:, None] - total).exp_()
            of_sinks = -(weights * (gradient * out).sum(dim=-1)).sum((0, 2))
        return *of_inputs, of_sinks, None


def weigh_with_sinks(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Compute `attend_with_sinks` by way of the weights."""
    later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.mT * scale).masked_fill(later, float("-inf"))
    total = torch.logaddexp(scores.logsumexp(dim=-1), sinks[:, None])
    return (scores - total[..., None]).exp() @ v
