"""Retention (Sun et al. 2023)."""

from typing import Any

import torch
from torch import Tensor

from attention_zoo.attention.recurrent.base import register_recurrent
from attention_zoo.attention.recurrent.decayed import DecayedAttention
from attention_zoo.errors import UserError, check_positive


@register_recurrent(
    name="retention",
    also_called=("retnet",),
    paper="Sun et al. 2023, arXiv 2307.08621, §2.1 and §2.2",
    equation="S_t = a_h S_{t−1} + k_tᵀv_t, out_t = q_t S_t, a_h = 1 − 2^(−e−h)",
    reference="flash-linear-attention naive_retention",
    deviations="it does not rotate: an encoding that acts on heads does; 1/√c scales q, not k; "
    "no division by row sums, which the norm of each head undoes except for its ε",
    positions=("positions", "embeddings", "heads"),
    cache="the state Σ a^(t−j) k_jᵀv_j",
    search_space={"decay_exponent": (3.0, 7.0)},
)
class RetentionAttention(DecayedAttention):
    """Products of queries and keys decay with distance, faster in some heads than in others.

        out_i = Σ_{j ≤ i} a_h^(i−j) (q_i·k_j/√c) v_j,   a_h = 1 − 2^(−e−h),   h from 0

    A norm for each head and a swish gate follow. Padded tokens do not count as distance.

    Args:
        expand: width of a head's values, as a multiple of that of its keys.
        decay_exponent: e; the larger it is, the more slowly all heads forget.
    """

    def __init__(self, *, expand: int = 2, decay_exponent: float = 5.0, **options: Any) -> None:
        super().__init__(**options)
        check_positive(expand=expand)
        if decay_exponent <= 0.0:
            raise UserError(f"decay_exponent must be above 0, got {decay_exponent}.")
        self.decay_exponent = decay_exponent
        self.set_value_dim(expand * self.head_dim)

    def log_decay(self, x: Tensor) -> Tensor:
        precision = torch.promote_types(x.dtype, torch.float32)
        heads = torch.arange(self.heads, device=x.device, dtype=precision)
        decay = torch.log1p(-(2.0 ** (-self.decay_exponent - heads)))
        return decay[None, :, None, None].expand(-1, -1, x.shape[1], -1)

    def naive_decay(self, x: Tensor) -> Tensor:
        exponents = [-self.decay_exponent - h for h in range(self.heads)]
        rates = torch.tensor([1 - 2.0**x for x in exponents], dtype=x.dtype)
        return rates[None, :, None, None].expand(-1, -1, x.shape[1], self.head_dim)
