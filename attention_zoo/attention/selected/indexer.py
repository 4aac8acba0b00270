"""Scores of an indexer for keys, and the loss by which it learns to score them."""

import math
import warnings
from functools import partial

import torch
from torch import Tensor

from attention_zoo.masks import Mask


def score_index(q: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
    """Compute Σ_j w_j ReLU(q_j · k)/√(c·j) [b 1 q n].

    Args:
        q: [b j q c], of the indexer's heads.
        weights: w [b 1 q j], of the heads for each query.
        keys: [b 1 q|1 n c], which the heads share.
    """
    similarity = torch.einsum("b j q c, b e q n c -> b e q j n", q, keys).relu()
    scores = torch.einsum("b e q j, b e q j n -> b e q n", weights, similarity)
    return scores / math.sqrt(q.shape[3] * q.shape[1])


def index_divergence(weights: Tensor, scores: Tensor, seen: Tensor) -> Tensor:
    """Compute the divergence of the indexer from the heads, KL(p ‖ softmax(I)), [b q].

    Args:
        weights: [b h q n], of the selected keys; p is their mean over the heads, detached.
        scores: I [b 1 q n], of the selected keys.
        seen: [b|1 1 q n], which of them are visible.
    """
    target = weights.detach().mean(dim=1)
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)[:, 0]
    return (torch.xlogy(target, target) - target * scores.log_softmax(dim=-1)).sum(dim=-1)


def average_real(divergence: Tensor, mask: Mask) -> Tensor:
    """Average a divergence [b q] over the queries that are real tokens."""
    real = torch.ones_like(divergence)
    if mask.key_mask is not None:
        real = mask.key_mask[:, -divergence.shape[1] :].to(divergence.dtype)
    return (divergence * real).sum() / real.sum().clamp(min=1.0)


def warn_if_untaken(out: Tensor, loss: Tensor | None, name: str) -> None:
    """Let the backward pass of an output warn if the auxiliary loss of its pass was not taken."""
    if loss is not None and out.requires_grad and not torch.compiler.is_compiling():
        out.register_hook(partial(warn_of_untaken_loss, loss, name))


def warn_of_untaken_loss(loss: Tensor, name: str, gradient: Tensor) -> None:
    """Warn in a backward pass if the auxiliary loss of its forward pass was not taken."""
    if not getattr(loss, "was_taken", False):
        warnings.warn(
            f"The indexer of {name} does not learn: its auxiliary loss was not added to "
            "the loss. Add take_auxiliary_loss(model), of attention_zoo.attention.base, before "
            "backward(); under activation checkpointing choose use_reentrant=False.",
            stacklevel=2,
        )
