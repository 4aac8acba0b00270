"""FlexAttention: only those blocks of queries and keys are computed that see each other.

The mask reaches it as a function of places, from which blocks of 128 × 128 are told; a bias as a
function that looks it up. On a CUDA GPU all is compiled, once for each kind of mask. On a CPU it is
PyTorch's plain form, which builds all scores, and has no backward pass.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from attention_zoo.errors import Unsupported
from attention_zoo.masks import Pattern, Visibility, window_span

# Of a row of the batch, a head, a query and a key.
Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


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
    """As `reference.attend`, whose docstring holds, without dropout.

    Raises:
        Unsupported: a gradient is asked for where there is none.
    """
    assert not dropout, "FlexAttention cannot drop weights"
    needed = [part for part in (q, k, v, bias) if part is not None and part.requires_grad]
    if needed and torch.is_grad_enabled() and not differentiable(q.device):
        raise Unsupported(
            f"backend=flex has no gradients on {q.device.type}, where FlexAttention has no "
            "backward pass. Train with backend=auto, or on a CUDA GPU; without gradients, as under "
            "torch.no_grad(), flex attends here too."
        )
    blocks = block_mask(visible, q, k)
    shared = bias is None or len(bias) == 1

    def biased(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        assert bias is not None
        return score + bias[0 if shared else b, h, i, j]

    function = compiled(flex_attention) if compiles(q.device) else plain
    return function(
        q,
        k,
        v,
        score_mod=None if bias is None else biased,
        block_mask=blocks,
        scale=scale,
        enable_gqa=k.shape[1] != q.shape[1],
    )


def differentiable(device: torch.device) -> bool:
    return device.type == "cuda"


def compiles(device: torch.device) -> bool:
    return device.type == "cuda"


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Full graphs: too many kinds of masks end in an error then, not in the plain form unnoticed.
    return torch.compile(function, fullgraph=True)


def plain(*args: Any, **options: Any) -> Tensor:
    """FlexAttention as it is, which warns that it is slow."""
    if torch.compiler.is_compiling():
        return flex_attention(*args, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        return flex_attention(*args, **options)


def block_mask(visible: Visibility, q: Tensor, k: Tensor) -> BlockMask | None:
    """Which blocks of queries [b h q c] see which of keys [b g k c]; None where all see all."""
    sees = rule(visible, len(q), q.device)
    if sees is None:
        return None
    make = compiled(create_block_mask) if compiles(q.device) else create_block_mask
    rows = None if visible.batch is None else len(q)
    return make(sees, rows, None, q.shape[2], k.shape[2], device=q.device)


def rule(visible: Visibility, batch: int, device: torch.device) -> Rule | None:
    """Who sees whom, elementwise; None where all see all."""
    mask, rows, columns, sinks = visible.mask, visible.rows, visible.columns, visible.sinks
    first_row, first_column = (place(part.start, device) for part in (rows, columns))
    parts: list[Pattern] = [] if visible.pattern is None else [visible.pattern]
    if mask.causal and columns.stop - 1 > rows.start:
        parts.append(lambda b, i, j: j <= i)
    if mask.window is not None:
        before, after = window_span(mask.window, mask.causal)
        parts.append(lambda b, i, j: (i - j <= before) & (j - i <= after))
    if mask.key_mask is not None:
        real = mask.key_mask.expand(batch, -1)
        parts.append(lambda b, i, j: real[b, j])
    if mask.segment_ids is not None:
        theirs, own = (
            mask.segment_ids.expand(batch, -1),
            mask.segment_ids_at(rows).expand(batch, -1),
        )
        parts.append(lambda b, i, j: own[b, i - first_row] == theirs[b, j])
    if not parts:
        return None

    def is_visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        i = query + first_row
        j = ((key - sinks).clamp(min=0) if sinks else key) + first_column
        seen = parts[0](b, i, j)
        for part in parts[1:]:
            seen = seen & part(b, i, j)
        return seen | (key < sinks) if sinks else seen

    return is_visible


def place(number: int, device: torch.device) -> int | Tensor:
    """A place that is not the first as a tensor: it moves in decoding, and code is not compiled
    anew for other tensors.
    """
    return torch.full((), number, device=device) if number else 0
