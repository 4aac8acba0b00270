"""Cross entropy over a large vocabulary, whose logits never exist all at once.

`torch.nn.functional.linear_cross_entropy` of PyTorch 2.13 does the same, but for linear heads alone
and without label smoothing.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attention_zoo.precision import upcast

# Logits of a chunk of tokens; a GPU needs larger products than a CPU to be busy.
CPU_CHUNK_LOGITS, GPU_CHUNK_LOGITS = 2**22, 2**26


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


def _add_gradients(loss: Tensor, inputs: list[Tensor], sums: list[Tensor]) -> None:
    """Add the gradients of a loss with respect to its inputs to sums, in place."""
    for total, gradient in zip(sums, torch.autograd.grad(loss, inputs), strict=True):
        total += gradient


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
        # All that outlives a chunk is allocated first: memory between that of two chunks would keep
        # an allocator from using theirs again.
        total = upcast(hidden.new_zeros(()))
        sums = [torch.zeros_like(x) for x in (hidden, *parameters)]
        of_hidden = sums[0].split([len(x) for x, _ in chunks])
        for (x, targets), of_chunk in zip(chunks, of_hidden, strict=True):
            with torch.enable_grad():
                inputs = x.detach().requires_grad_()
                loss = chunk_loss(inputs, targets)
            total += loss.detach()
            _add_gradients(loss, [inputs, *parameters], [of_chunk, *sums[1:]])
        ctx.gradients = sums
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Any, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # they are as large as the head
        assert gradients is not None, "the loss of chunks can be differentiated once"
        return None, None, *(gradient.mul_(factor) for gradient in gradients)
