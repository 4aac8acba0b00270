"""Cross entropy over a large vocabulary, whose logits never exist all at once.

`torch.nn.functional.linear_cross_entropy` of PyTorch 2.13 does the same, but for linear heads alone
and without label smoothing.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

# Logits of a chunk of tokens. On a CPU they then stay in its cache; a GPU needs larger products.
CPU_CHUNK_LOGITS, GPU_CHUNK_LOGITS = 2**23, 2**26


def max_logits(device: torch.device) -> int:
    """Return how many logits at most are computed at a time on a device."""
    return CPU_CHUNK_LOGITS if device.type == "cpu" else GPU_CHUNK_LOGITS


def chunk_tokens(
    hidden: Tensor, targets: Tensor, vocabulary_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield chunks of hidden states [n d] and targets [n], by how many logits are computed."""
    size = max(1, max_logits(hidden.device) // vocabulary_size)
    yield from zip(hidden.split(size), targets.split(size), strict=True)


def chunked_cross_entropy(
    head: nn.Linear,
    hidden: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the cross entropy of `head(hidden)` and targets, summed over the tokens.

    The gradients of a chunk are computed as soon as its loss is, so that its logits can go. They
    can be differentiated no further.

    Args:
        head: computes logits [n v] of hidden states, each token by itself and without randomness.
        hidden: [n d].
        targets: [n], tokens; `ignore_index` where there is none.
        ignore_index: as in `torch.nn.functional.cross_entropy`.
        label_smoothing: likewise.
    """

    def chunk_loss(x: Tensor, chunk_targets: Tensor) -> Tensor:
        return cross_entropy(
            head(x),
            chunk_targets,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction="sum",
        )

    parameters = [x for x in head.parameters() if x.requires_grad]
    chunks = [*chunk_tokens(hidden, targets, head.out_features)]
    return _SumOfChunks.apply(chunk_loss, chunks, hidden, *parameters)


class _SumOfChunks(torch.autograd.Function):
    """The sum of the losses of chunks, with gradients that are computed with the losses."""

    @staticmethod
    def forward(
        ctx: Any,
        chunk_loss: Callable[[Tensor, Tensor], Tensor],
        chunks: list[tuple[Tensor, Tensor]],
        hidden: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        losses, of_hidden, of_parameters = [], [], [torch.zeros_like(x) for x in parameters]
        for x, targets in chunks:
            with torch.enable_grad():
                inputs = x.detach().requires_grad_()
                loss = chunk_loss(inputs, targets)
            gradient, *gradients = torch.autograd.grad(loss, [inputs, *parameters])
            losses.append(loss.detach())
            of_hidden.append(gradient)
            for total, part in zip(of_parameters, gradients, strict=True):
                total += part
        ctx.gradients = [torch.cat(of_hidden), *of_parameters]
        return torch.stack(losses).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Any, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # they are as large as the head
        assert gradients is not None, "the loss of chunks can be differentiated once"
        return None, None, *(gradient.mul_(factor) for gradient in gradients)
