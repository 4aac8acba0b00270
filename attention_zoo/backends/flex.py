"""FlexAttention: it computes only those blocks of queries and keys that see each other.

The mask is a function of columns, from which FlexAttention derives blocks of 128 × 128; a bias is a
function that looks it up. On a CUDA GPU all is compiled, once for each kind of mask. On a CPU it is
PyTorch's plain form, which builds all scores and has no backward pass.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from attention_zoo.errors import Unsupported
from attention_zoo.masks import Visibility

# Devices on which FlexAttention has a backward pass, and on which it is compiled.
TRAINABLE_DEVICES = COMPILED_DEVICES = ("cuda",)
# FlexAttention's function of a row of the batch, a head, a query and a key.
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


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
    """Compute what `reference.attend` computes, without dropout.

    Raises:
        Unsupported: a tensor requires a gradient on a device without a backward pass.
    """
    assert not dropout, "FlexAttention cannot drop weights"
    differentiated = [part for part in (q, k, v, bias) if part is not None and part.requires_grad]
    if differentiated and torch.is_grad_enabled() and q.device.type not in TRAINABLE_DEVICES:
        raise Unsupported(
            f"backend=flex has no gradients on {q.device.type}, where FlexAttention has no "
            "backward pass. Train with backend=auto, or on a CUDA GPU; without gradients, as under "
            "torch.no_grad(), flex attends here too."
        )
    block_mask = create_mask(visible, q, k)
    shared = bias is None or len(bias) == 1

    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        assert bias is not None
        return score + bias[0 if shared else b, h, i, j]

    is_compiled = q.device.type in COMPILED_DEVICES
    function = compiled(flex_attention) if is_compiled else uncompiled_flex_attention
    return function(
        q,
        k,
        v,
        score_mod=None if bias is None else score_mod,
        block_mask=block_mask,
        scale=scale,
        enable_gqa=k.shape[1] != q.shape[1],
    )


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function once."""
    # Full graphs: too many kinds of masks end in an error then, not in the plain form unnoticed.
    return torch.compile(function, fullgraph=True)


def uncompiled_flex_attention(*args: Any, **options: Any) -> Tensor:
    """Call FlexAttention without compilation, and without its warning that this is slow."""
    if torch.compiler.is_compiling():
        return flex_attention(*args, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        return flex_attention(*args, **options)


def create_mask(visible: Visibility, q: Tensor, k: Tensor) -> BlockMask | None:
    """Return which blocks of queries [b h q c] see which of keys [b g k c]; None for all."""
    mask_mod = create_mask_mod(visible, len(q), q.device)
    if mask_mod is None:
        return None
    is_compiled = q.device.type in COMPILED_DEVICES
    create = compiled(create_block_mask) if is_compiled else create_block_mask
    rows = None if visible.mask.batch is None else len(q)
    return create(mask_mod, rows, None, q.shape[2], k.shape[2], device=q.device)


def create_mask_mod(visible: Visibility, batch: int, device: torch.device) -> MaskMod | None:
    """Return FlexAttention's function of batch, head, query and key; None where all see all."""
    predicate, sinks = visible.predicate(batch), visible.sinks
    if predicate is None:
        return None
    first_row = offset(visible.rows.start, device)
    first_column = offset(visible.columns.start, device)

    def mask_mod(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        column = (key - sinks).clamp(min=0) if sinks else key
        seen = predicate(b, query + first_row, column + first_column)
        return seen | (key < sinks) if sinks else seen

    return mask_mod


def offset(number: int, device: torch.device) -> int | Tensor:
    """Return a first column; unless 0, as a tensor, for which code is not compiled anew."""
    return torch.full((), number, device=device) if number else 0
