"""Gated slot attention (Zhang et al. 2024)."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, silu

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.base import RecurrentAttention, register_recurrent
from attention_zoo.attention.recurrent.chunk_decay import join_blocks, pair_blocks
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.attention.recurrent.decayed_product import decayed_product
from attention_zoo.attention.recurrent.naive import read_states, run_states
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.custom_gradients import apply_rms_norm
from attention_zoo.errors import UserError, check_positive
from attention_zoo.masks import TokenSpan
from attention_zoo.precision import autocast_disabled


@register_recurrent(
    name="gated_slot",
    also_called=("gsa",),
    paper="Zhang et al. 2024, arXiv 2409.07146",
    equation="K̃ ← diag(a) K̃ + (1 − a)ᵀk, Ṽ ← diag(a) Ṽ + (1 − a)ᵀv; out = softmax(q K̃ᵀ) Ṽ",
    reference="flash-linear-attention naive_recurrent_gsa",
    cache="keys and values of the slots",
    weights="nonnegative",
    search_space={"temperature": (2.0, 32.0)},
)
class GatedSlotAttention(RecurrentAttention):
    """Softmax attention over a fixed number of slots, each of which is a gated mean of tokens.

        K̃_t = diag(a_t) K̃_{t−1} + (1 − a_t)ᵀ k_t,   Ṽ_t = diag(a_t) Ṽ_{t−1} + (1 − a_t)ᵀ v_t
        out_t = norm(swish(softmax(q_t K̃_tᵀ) Ṽ_t)) W_O,   a_t = σ(x_t W)^(1/τ)

    with q, k and v = swish(x W), a number a for each slot, and one norm for all heads.

    Args:
        slots: number of slots of a head.
        temperature: τ; above 1 it makes slots forget more slowly.
    """

    decided_options = ("backend",)
    num_states = 2

    def __init__(self, *, slots: int = 64, temperature: float = 8.0, **options: Any) -> None:
        super().__init__(backend="torch", **options)
        check_positive(slots=slots)
        if temperature <= 0.0:
            raise UserError(f"temperature must be above 0, got {temperature}.")
        self.slots = slots
        self.temperature = temperature
        self.forget = nn.Linear(self.dim, self.heads * slots, bias=self.query.bias is not None)
        self.norm = nn.RMSNorm(self.heads * self.head_dim, eps=1e-5)

    def project_steps(self, x: Tensor, positions: Tensor, convolve: ConvolutionRunner) -> Steps:
        q, k, v = (silu(self.split_heads(part(x))) for part in (self.query, self.key, self.value))
        decay = logsigmoid(self.split_heads(self.forget(x))) / self.temperature
        return Steps(q, k, v, decay=decay)

    def recur(
        self, steps: Steps, x: Tensor, span: TokenSpan, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Attend; the states are the keys [b h c s] and the values [b h s c] of the slots."""
        keys, values = states if states else (None, None)
        with autocast_disabled(x):
            weights, keys = self.slot_weights(steps, span, keys)
            out, values = decayed_product(weights, values)
        return out, (keys, values)

    def slot_weights(
        self, steps: Steps, span: TokenSpan, keys: Tensor | None = None
    ) -> tuple[Steps, Tensor]:
        """Return the steps of the slots' values, whose queries are weights, and their last keys."""
        assert steps.decay is not None
        writes = -torch.expm1(steps.decay)
        scores, keys = product_decayed_by_value(steps._replace(v=writes).apply_mask(span), keys)
        slot_steps = steps._replace(q=scores.softmax(dim=-1), k=writes)
        return slot_steps.apply_mask(span), keys

    def implied_weights(self, steps: Steps, x: Tensor, span: TokenSpan) -> Tensor:
        slot_steps, _ = self.slot_weights(steps, span)
        return decayed_product(slot_steps.use_unit_values())[0]

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        y = silu(rearrange(attended, "b h t c -> b t (h c)"))
        return self.output(apply_rms_norm(self.norm, y).to(x.dtype))

    def state_size(self, tokens: int) -> int:
        return 2 * self.heads * self.slots * self.head_dim

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        q, k, v = (silu(part) for part in naive.linear_qkv(self, x))
        gates = torch.sigmoid(naive.linear_heads(self.forget, x, self.heads))
        gates = gates ** (1 / self.temperature)
        transitions = torch.diag_embed(gates)
        keys, values = (run_states(transitions, 1 - gates, part, visible) for part in (k, v))
        scores = (keys * q[..., None, :]).sum(dim=-1)
        powers = torch.exp(scores - scores.detach().amax(dim=-1, keepdim=True))
        attended = read_states(powers / powers.sum(dim=-1, keepdim=True), values)
        y = silu(torch.cat([*attended.unbind(dim=1)], dim=-1))
        return naive.linear(self.output, naive.rms_norm(y, self.norm.weight, epsilon=1e-5))


def product_decayed_by_value(steps: Steps, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute q_t S_t for S_t = S_{t−1} diag(a_t) + k_tᵀ v_t, whose decay is of channels of values.

        out_ie = Σ_{j ≤ i} (q_i·k_j) v_je Π_{j < m ≤ i} a_me

    The steps have a decay log a, [b h t e|1]. States and outputs are those of `decayed_product`.
    """
    q, k, v, _, _, decay, *_ = steps.split_chunks(power_of_two=True)
    assert decay is not None
    # As in `decay_channels`, blocks of tokens are joined. Their outputs decay as rows would.
    factors, out = decay.exp(), (q * k).sum(dim=-1, keepdim=True) * v
    size = 1
    while size < q.shape[-2]:
        log_totals = decay.unflatten(-2, (-1, 2))
        early_total, late_total = log_totals.exp()[..., None].mT.unbind(-3)
        early_factors, late_factors = pair_blocks(factors, size)
        early_values, late_values = pair_blocks(v, size)
        early_out, late_out = pair_blocks(out, size)
        scores = pair_blocks(q, size)[1] @ pair_blocks(k, size)[0].mT
        out = join_blocks(early_out, late_out + scores @ early_values * late_factors)
        factors = join_blocks(early_factors, late_factors * early_total)
        v = join_blocks(early_values * late_total, late_values)
        decay = log_totals.sum(dim=-2)
        size *= 2
    chunks = zip(*(x.unbind(2) for x in (out, q, factors, k.mT @ v, decay.exp())), strict=True)
    outputs = []
    for within, q_part, factors_part, addition, state_decay in chunks:
        if state is None:
            outputs.append(within)
            state = addition
        else:
            outputs.append(within + q_part @ state * factors_part)
            state = addition + state_decay * state
    assert state is not None
    return torch.cat(outputs, dim=2)[:, :, : steps.q.shape[2]], state
