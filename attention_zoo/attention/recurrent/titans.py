"""The neural memory of Titans (Behrouz et al. 2025)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, silu

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.base import register_recurrent
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner, ShortConvolution
from attention_zoo.attention.recurrent.inner_loop import InnerLoopAttention, Schedule
from attention_zoo.attention.recurrent.mini_batches import MiniBatches, Parts, States
from attention_zoo.attention.recurrent.naive import convolve_heads, divide_by_length
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.custom_gradients import apply_rms_norm, unit_vectors
from attention_zoo.errors import check_positive

HIDDEN_RATIO = 4  # width of the memory's hidden layers, in widths of a head


@register_recurrent(
    name="titans",
    paper="Behrouz et al. 2025, arXiv 2501.00663",
    equation="S ← η S − θ ∇½|f(k; M) − v|²;  M ← (1 − α) M + S;  out = f(q; M)",
    reference="flash-linear-attention titans_linear",
    deviations="the neural memory alone, as a layer, without attention and persistent tokens; the "
    "factor 2 of the loss belongs to θ; the memory is a matrix, or an MLP by an option; no layer "
    "norm in it, which flash-linear-attention has, with a gradient that lacks brackets",
    cache="three memories for each head: that before the mini-batch, that now, and its momentum; "
    "and the last tokens of the convolutions",
)
class TitansAttention(InnerLoopAttention):
    """A memory that learns from the tokens by gradient descent with momentum, and that forgets.

        S_t = η_t S_{t−1} − θ_t G_t,   M_t = (1 − α_t) M_{t−1} + S_t
        out_t = norm(f(q_t; M_t)) ⊙ SiLU(W x_t)

    with η, θ and α = σ(W x + b), and the gradients G at the memory before the mini-batch; M is
    learned for the start of a sequence. Short convolutions and SiLU come before q, k and v; then q
    and k become unit vectors.

    Args:
        kernel_size: number of tokens that a convolution mixes, including the token itself.
        memory_layers: number of layers of the memory f: 1 is a matrix, more are an MLP with GELU,
            whose hidden layers are four times as wide as a head. Large values can make an MLP
            diverge, as its gradient grows with its weights and nothing here bounds it; the memory
            of `ttt_mlp` has a layer norm.
    """

    convolves_qkv = True
    num_sets = 3
    num_states = 4
    bias = False

    def __init__(self, *, kernel_size: int = 4, memory_layers: int = 1, **options: Any) -> None:
        super().__init__(**options)
        check_positive(memory_layers=memory_layers)
        hidden = [HIDDEN_RATIO * self.head_dim] * (memory_layers - 1)
        widths = [self.head_dim, *hidden, self.head_dim]
        self.create_layers(widths, [inputs**-0.5 for inputs in widths[:-1]])
        width = self.heads * self.head_dim
        self.query_convolution = ShortConvolution(width, kernel_size)
        self.key_convolution = ShortConvolution(width, kernel_size)
        self.value_convolution = ShortConvolution(width, kernel_size)
        self.rate = nn.Linear(self.dim, self.heads)
        # So that a mini-batch of equal tokens does not step too far.
        nn.init.constant_(self.rate.bias, -3.0)
        self.momentum = nn.Linear(self.dim, self.heads)
        self.decay = nn.Linear(self.dim, self.heads)
        # Some heads forget within a few tokens, and others keep hundreds.
        self.decay.bias = nn.Parameter(torch.linspace(1.0, 6.0, self.heads))
        self.gate = nn.Linear(self.dim, width, bias=False)
        self.norm = nn.RMSNorm(self.head_dim, eps=1e-5)

    def project_steps(self, x: Tensor, positions: Tensor, convolve: ConvolutionRunner) -> Steps:
        """Project tokens; the decays are those of M and of S, side by side."""
        q = unit_vectors(silu(self.split_heads(convolve(self.query_convolution, self.query(x)))))
        k = unit_vectors(silu(self.split_heads(convolve(self.key_convolution, self.key(x)))))
        v = silu(self.split_heads(convolve(self.value_convolution, self.value(x))))
        decays = [self.split_heads(layer(x)) for layer in (self.decay, self.momentum)]
        decay = logsigmoid(torch.cat(decays, dim=-1))
        return Steps(q, k, v, rate=self.split_heads(self.rate(x)).sigmoid(), decay=decay)

    def schedule(self, tokens: Parts) -> Schedule:
        taken = tokens["taken"][:, None, :, None]
        forgetting, momentum = tokens["decay"].unbind(dim=-1)
        size = forgetting.shape[-1]
        earlier = torch.ones(size, size, dtype=torch.bool, device=taken.device).tril()
        # An empty place adds nothing: neither its gradient nor, once more, the momentum.
        forgotten = decay_between(forgetting, earlier) * taken.transpose(-2, -1)
        carried = decay_between(momentum, earlier) * tokens["rate"].transpose(-2, -1)
        from_start = momentum.cumsum(dim=-1)[..., None].exp()
        return Schedule(
            first=forgetting.cumsum(dim=-1)[..., None].exp(),
            second=forgotten @ from_start,
            tokens=forgotten @ carried,
            kept=from_start[..., -1:, :],
            added=carried[..., -1, :, None],
        )

    def end_batch(self, before: States, weights: Tensor, change: Tensor, full: Tensor) -> States:
        return torch.where(full, weights, before[0]), weights, change

    def full_schedule(
        self, steps: Steps, batches: MiniBatches, visible: Tensor
    ) -> tuple[Tensor, Tensor]:
        assert steps.decay is not None and steps.rate is not None
        real = visible.diagonal(dim1=-2, dim2=-1)[..., None]
        forgetting, momentum = steps.decay.masked_fill(~real, 0.0).unbind(dim=-1)
        first = (visible.to(forgetting.dtype) @ forgetting[..., None]).exp()
        carried = decay_between(momentum, visible) * steps.rate.transpose(-2, -1)
        return first, decay_between(forgetting, visible) @ carried

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        gate = silu(self.split_heads(self.gate(x)))
        return super().project_output(apply_rms_norm(self.norm, attended) * gate, x)

    def naive_inputs(self, x: Tensor, visible: Tensor) -> list[Tensor]:
        q, k, v = (convolve_heads(self, name, x, visible) for name in ("query", "key", "value"))
        rates = [
            torch.sigmoid(naive.linear_heads(layer, x, self.heads))
            for layer in (self.rate, self.momentum, self.decay)
        ]
        return [divide_by_length(q), divide_by_length(k), v, *rates]

    def naive_update(
        self,
        anchor: Tensor,
        weights: Tensor,
        change: Tensor,
        gradient: Tensor,
        rates: list[Tensor],
        place: int,
    ) -> tuple[Tensor, Tensor]:
        rate, momentum, kept = (part[..., None] for part in rates)
        change = momentum * change - rate * gradient
        return kept * weights + change, change

    def naive_output(self, attended: Tensor, x: Tensor) -> Tensor:
        normal = naive.rms_norm(attended, self.norm.weight, epsilon=1e-5)
        gate = silu(naive.linear_heads(self.gate, x, self.heads))
        return naive.linear_output(self.output, normal * gate)


def decay_between(decay: Tensor, visible: Tensor) -> Tensor:
    """Compute exp(Σ_{j < m ≤ i} g_m) [… t t] of log decays g [… t], zero where j is not visible.

    No sum is the difference of larger ones, and no exponent is positive.
    """
    length = decay.shape[-1]
    later = torch.ones(length, length, dtype=torch.bool, device=decay.device).tril(-1)
    sums = decay[..., :, None].expand(*decay.shape, length).masked_fill(~later, 0.0).cumsum(dim=-2)
    return sums.exp() * visible
