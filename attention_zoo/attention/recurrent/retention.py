"""Retention (Sun et al. 2023)."""

from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.recurrent.decayed import DecayedAttention
from attention_zoo.errors import UserError
from attention_zoo.zoo import ATTENTION, AttentionCard


@ATTENTION.register(
    AttentionCard(
        name="retention",
        paper="Sun et al. 2023, arXiv 2307.08621, §2.1 and §2.2",
        equation="S_t = a_h S_{t−1} + k_tᵀv_t, out_t = q_t S_t, a_h = 1 − 2^(−5−h)",
        reference="flash-linear-attention naive_retention",
        deviations="no rotation of its own: the paper's is left to an encoding that acts on heads; "
        "1/√c scales q, not k; the paper's division by row sums is left out, which the norm of "
        "each head undoes but for its ε",
        roles=("causal",),
        masks=("causal", "key_mask", "segment_ids"),
        positions=("positions", "embeddings", "heads"),
        cache="the state Σ a^(t−j) k_jᵀv_j",
        decode_state="h·c·e",
        cost="t",
        weights="signed",
    )
)
class RetentionAttention(DecayedAttention):
    """Products of queries and keys, which decay with distance, faster in some heads than in others:

        out_i = Σ_{j ≤ i} a_h^(i−j) (q_i·k_j/√c) v_j,   a_h = 1 − 2^(−5−h),   h from 0

    then a norm for each head and a swish gate. Padded tokens do not count as distance.

    Args:
        expand: width of a head's values, as a multiple of that of its keys.
    """

    def __init__(self, *, expand: int = 2, **options: Any) -> None:
        super().__init__(**options)
        if expand < 1:
            raise UserError(f"expand must be at least 1, got {expand}.")
        self.set_value_dim(expand * self.head_dim)

    def decay(self, x: Tensor) -> Tensor:
        precision = torch.promote_types(x.dtype, torch.float32)
        steps = torch.arange(self.heads, device=x.device, dtype=precision)
        decay = torch.log1p(-(2.0 ** (-5.0 - steps)))
        return decay[None, :, None, None].expand(-1, -1, x.shape[1], -1)
