"""Lightning attention (Qin et al. 2024, MiniMax 2025)."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import silu

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.base import register_recurrent
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.attention.recurrent.decayed import DecayedAttention
from attention_zoo.attention.recurrent.naive import read_states, run_states
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.custom_gradients import apply_rms_norm
from attention_zoo.errors import UserError

# Of the decay of the last layer, as a share of that of the first: it is not quite zero.
MIN_SHARE = 1e-5


@register_recurrent(
    name="lightning",
    paper="MiniMax 2025, arXiv 2501.08313; Qin et al. 2024, arXiv 2401.04658",
    equation="S_t = a_h S_{t−1} + k_tᵀv_t, out_t = q_t S_t, a_h = exp(−2^(−8h/H) r)",
    reference="transformers MiniMaxLightningAttention",
    deviations="r is 1 in every layer, unless the number of layers is given; padding does not "
    "count as distance; one projection for each of q, k and v",
    positions=("positions", "embeddings", "heads"),
    cache="the state Σ a^(t−j) k_jᵀv_j",
)
class LightningAttention(DecayedAttention):
    """Linear attention without a denominator, whose heads forget at different, fixed rates.

        q, k, v = swish(x W);   out_i = Σ_{j ≤ i} a_h^(i−j) (q_i·k_j) v_j
        y = (norm(out) ⊙ σ(x W_G)) W_O

    with one norm for all heads, and a_h = exp(−2^(−8h/H) r) for the heads h from 1 to H. In the
    layer l of L, from 0, r is 1 − l/(L − 1): the last layers hardly forget.

    Args:
        layers: L; by default, r is 1.

    Raises:
        UserError: `layer` is not among the layers.
    """

    def __init__(self, *, layers: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        if layers is not None and not self.layer < layers:
            raise UserError(f"layer must be below layers, got layer={self.layer}, layers={layers}.")
        self.layers = layers
        self.norm = nn.RMSNorm(self.heads * self.head_dim, eps=1e-6)

    def project_steps(self, x: Tensor, positions: Tensor, convolve: ConvolutionRunner) -> Steps:
        q, k, v = (silu(self.split_heads(part(x))) for part in (self.query, self.key, self.value))
        q, k = self.position.rotate(q, k, positions)
        return Steps(q, k, v, decay=self.log_decay(x))

    def log_decay(self, x: Tensor) -> Tensor:
        share = 1.0
        if self.layers is not None:
            share = 1.0 - self.layer / max(self.layers - 1, 1) + MIN_SHARE
        precision = torch.promote_types(x.dtype, torch.float32)
        heads = torch.arange(1, self.heads + 1, device=x.device, dtype=precision)
        decay = -share * 2.0 ** (-8.0 * heads / self.heads)
        return decay[None, :, None, None].expand(-1, -1, x.shape[1], -1)

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        y = apply_rms_norm(self.norm, rearrange(attended, "b h t c -> b t (h c)"))
        return self.output((y * self.gate(x).sigmoid()).to(x.dtype))

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        q, k, v = (silu(part) for part in naive.linear_qkv(self, x))
        q, k = naive.rotate_qk(self, q, k, positions)
        transitions = torch.diag_embed(self.naive_decay(x))
        attended = read_states(q, run_states(transitions, k, v, visible))
        y = torch.cat([*attended.unbind(dim=1)], dim=-1)
        y = naive.rms_norm(y, self.norm.weight, epsilon=1e-6)
        return naive.linear(self.output, y * torch.sigmoid(naive.linear(self.gate, x)))

    def naive_decay(self, x: Tensor) -> Tensor:
        rates = torch.tensor([0.5 ** (8 * h / self.heads) for h in range(1, self.heads + 1)])
        if self.layers is not None:
            rates = rates * (1 - self.layer / max(self.layers - 1, 1) + 1e-5)
        decay = torch.exp(-rates.to(x.dtype))
        return decay[None, :, None, None].expand(-1, -1, x.shape[1], self.head_dim)
