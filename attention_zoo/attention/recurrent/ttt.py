"""Test-time training (Sun et al. 2024), whatever the inner network."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.attention.recurrent.inner_loop import InnerLoopAttention, Schedule
from attention_zoo.attention.recurrent.mini_batches import MiniBatches, Parts, States
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.precision import upcast

NORM_EPSILON = 1e-6


class TTTAttention(InnerLoopAttention):
    """A network takes a step of gradient descent for every token.

        W_i = W' − p_i Σ_j η_j G_j over the tokens j ≤ i of the mini-batch,   η = η_0 σ(w x + b) / c
        f(x; W) = x + LN(MLP(x; W))

    with p_i = max(1/i + learned, 0) for the place i in the mini-batch, and the weights W' before
    it. A layer norm over all heads, without a bias, comes before the output projection. A variant
    sets the widths of the hidden layers.

    Args:
        base_rate: η_0, the largest learning rate.
    """

    no_decay = ("gain", "shift")
    num_sets = 2
    num_states = 3
    bias = True
    # Widths of the hidden layers, in widths of a head.
    hidden: ClassVar[tuple[int, ...]] = ()

    def __init__(self, *, base_rate: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.base_rate = base_rate
        widths = [ratio * self.head_dim for ratio in (1, *self.hidden, 1)]
        self.create_layers(widths, [0.02] * (len(widths) - 1))
        self.gain = nn.Parameter(torch.ones(self.heads, 1, self.head_dim))
        self.shift = nn.Parameter(torch.zeros(self.heads, 1, self.head_dim))
        self.rate = nn.Linear(self.dim, self.heads)
        self.place_rate = nn.Parameter(torch.zeros(self.mini_batch_size, 1))
        self.norm = nn.LayerNorm(self.heads * self.head_dim, eps=NORM_EPSILON, bias=False)

    def project_steps(self, x: Tensor, positions: Tensor, convolve: ConvolutionRunner) -> Steps:
        q, k, v = (self.split_heads(part(x)) for part in (self.query, self.key, self.value))
        rate = self.split_heads(self.rate(x)).sigmoid() * (self.base_rate / self.head_dim)
        return Steps(q, k, v, rate=rate)

    def place_rates(self) -> Tensor:
        """Compute p, [m 1]."""
        learned = upcast(self.place_rate)
        places = torch.arange(1, self.mini_batch_size + 1, device=learned.device)
        return (1 / places[:, None].to(learned.dtype) + learned).clamp(min=0.0)

    def schedule(self, tokens: Parts) -> Schedule:
        p, rate = self.place_rates(), tokens["rate"]
        ones = torch.ones_like(p)
        return Schedule(ones, p, (p * rate.transpose(-2, -1)).tril(), ones[:1], rate)

    def end_batch(self, before: States, weights: Tensor, change: Tensor, full: Tensor) -> States:
        return torch.where(full, weights, before[0]), change.masked_fill(full, 0.0)

    def full_schedule(
        self, steps: Steps, batches: MiniBatches, visible: Tensor
    ) -> tuple[Tensor, Tensor]:
        assert steps.rate is not None
        size, p = self.mini_batch_size, self.place_rates()[:, 0]
        numbers = (batches.places // size)[:, None]
        within = numbers[..., :, None] == numbers[..., None, :]
        # Tokens of earlier mini-batches have changed W' by the rate of the last place.
        rates = torch.where(within, p[batches.places % size][:, None, :, None], p[-1])
        rates = rates * steps.rate.transpose(-2, -1) * visible
        return torch.ones_like(steps.rate), rates

    def loss_gradient(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        unit, deviation = standardise(x)
        gain, shift = upcast(self.gain), upcast(self.shift)
        by_unit = gain * (k + gain * unit + shift - v)
        projected = unit * (unit * by_unit).mean(dim=-1, keepdim=True)
        return (by_unit - by_unit.mean(dim=-1, keepdim=True) - projected) / deviation

    def finish(self, x: Tensor, q: Tensor) -> Tensor:
        return q + upcast(self.gain) * standardise(x)[0] + upcast(self.shift)

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        joined = attended.transpose(1, 2).flatten(2)
        weight = self.norm.weight.to(joined.dtype)
        normal = layer_norm(joined, self.norm.normalized_shape, weight, eps=NORM_EPSILON)
        return super().project_output(self.split_heads(normal), x)

    def naive_inputs(self, x: Tensor, visible: Tensor) -> list[Tensor]:
        rate = torch.sigmoid(naive.linear_heads(self.rate, x, self.heads))
        return [*naive.linear_qkv(self, x), self.base_rate * rate / self.head_dim]

    def naive_network(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        normal = naive.layer_norm(super().naive_network(x, weights), epsilon=NORM_EPSILON)
        return x + normal * self.gain[:, 0] + self.shift[:, 0]

    def naive_update(
        self,
        anchor: Tensor,
        weights: Tensor,
        change: Tensor,
        gradient: Tensor,
        rates: list[Tensor],
        place: int,
    ) -> tuple[Tensor, Tensor]:
        change = rates[0][..., None] * gradient + (0 if place == 0 else change)
        p = torch.relu(1 / (place + 1) + self.place_rate[place, 0])
        return anchor - p * change, change

    def naive_output(self, attended: Tensor, x: Tensor) -> Tensor:
        joined = torch.cat([*attended.unbind(dim=1)], dim=-1)
        normal = naive.layer_norm(joined, epsilon=NORM_EPSILON) * self.norm.weight
        return naive.linear(self.output, normal)


def standardise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (x − mean) / σ and σ = √(variance + ε), over the last dimension."""
    centred = x - x.mean(dim=-1, keepdim=True)
    deviation = (centred.square().mean(dim=-1, keepdim=True) + NORM_EPSILON).sqrt()
    return centred / deviation, deviation
