"""What the naive forms of this family share."""

import torch
from torch import Tensor

from attention_zoo.attention.softmax import Heads


def heads_in_full(heads: Heads) -> tuple[Tensor, Tensor]:
    """Keys and values [b h k c], one for each query head."""
    shared = heads.q.shape[1] // heads.k.shape[1]
    return heads.k.repeat_interleave(shared, dim=1), heads.v.repeat_interleave(shared, dim=1)


def scores_by_definition(q: Tensor, k: Tensor, bias: Tensor | None, *, width: int) -> Tensor:
    """q_i·k_j/√c and a bias, for [b h q c] and [b h k c]: [b h q k].

    `width` is c before an encoding made heads wider.
    """
    scores = torch.einsum("b h q c, b h k c -> b h q k", q, k) / width**0.5
    return scores if bias is None else scores + bias


def weights_by_definition(scores: Tensor, visible: Tensor) -> Tensor:
    """exp(s_ij) / Σ_j exp(s_ij) over the keys j that are visible, for [b h q k] and [b q k].

    Zeros where nothing is. For scores of moderate size only: no maximum is taken off.
    """
    powers = scores.exp() * visible[:, None]
    sums = powers.sum(dim=-1, keepdim=True)
    return powers / sums.masked_fill(sums == 0.0, 1.0)
