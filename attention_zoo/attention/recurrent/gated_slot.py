"""Gated slot attention (Zhang et al. 2024)."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, silu

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.base import RecurrentAttention, register_recurrent
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.attention.recurrent.decayed import decayed_product
from attention_zoo.attention.recurrent.naive import read_states, run_states
from attention_zoo.attention.recurrent.steps import Steps, sum_after
from attention_zoo.errors import UserError, check_positive
from attention_zoo.masks import TokenSpan
from attention_zoo.precision import apply_rms_norm, autocast_disabled


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

    The steps have a decay log a, [b h t e|1]. States and outputs are those of `decayed_product`,
    as is the way in which chunks are halved.
    """
    q, k, v, _, _, decay, *_ = steps.split_chunks()
    assert decay is not None
    from_start = decay.cumsum(dim=-2).exp()
    additions = k.transpose(-2, -1) @ (v * sum_after(decay).exp())
    states = [torch.zeros_like(additions[:, :, 0]) if state is None else state]
    parts = from_start[..., -1:, :].unbind(2), additions.unbind(2)
    for chunk_decay, addition in zip(*parts, strict=True):
        states.append(chunk_decay * states[-1] + addition)
    out = (q * k).sum(dim=-1, keepdim=True) * v
    out = out + (q @ torch.stack(states[:-1], dim=2)) * from_start
    half = 1
    while half < q.shape[-2]:
        first, second = zip(
            *(part.unflatten(-2, (-1, 2, half)).unbind(-3) for part in (q, k, v, decay)),
            strict=True,
        )
        values = first[2] * sum_after(first[3]).exp()
        product = second[0] @ first[1].transpose(-2, -1) @ values
        product = product * second[3].cumsum(dim=-2).exp()
        out = out + torch.stack([torch.zeros_like(product), product], dim=-3).flatten(-4, -2)
        half *= 2
    return out.flatten(2, 3)[:, :, : steps.q.shape[2]], states[-1]
