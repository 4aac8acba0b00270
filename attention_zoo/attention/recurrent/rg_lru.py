"""The real-gated linear recurrent unit of Griffin (De et al. 2024)."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import gelu, softplus

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.base import RecurrentAttention, register_recurrent
from attention_zoo.attention.recurrent.channel_scan import channel_scan
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner, ShortConvolution
from attention_zoo.attention.recurrent.decayed_product import decayed_product
from attention_zoo.attention.recurrent.naive import run_states
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.errors import UserError, check_positive
from attention_zoo.masks import TokenSpan
from attention_zoo.precision import upcast

RATE = 8.0  # c of the paper
MAX_DECAY = 0.999  # at the start


@register_recurrent(
    name="rg_lru",
    also_called=("griffin", "hawk"),
    paper="De et al. 2024, arXiv 2402.19427",
    equation="h_t = a_t ⊙ h_{t−1} + √(1 − a_t²) ⊙ (i_t ⊙ u_t), a_t = σ(Λ)^(c r_t)",
    reference="transformers RecurrentGemmaRecurrentBlock",
    deviations="√(1 − a²) scales the first token too, as in the paper, where the authors' code "
    "makes an exception of it",
    cache="the hidden state, and the last tokens of the convolution",
    weights="nonnegative",
    # Tasks of long memory need decays near 1 at the start (Orvieto et al. 2023, arXiv 2303.06349).
    search_space={"min_decay": (0.5, 0.99)},
)
class RGLRUAttention(RecurrentAttention):
    """A linear recurrence of each channel, with an input gate and a recurrence gate.

        u = convolution(x W_u),   r, i = σ(u W + b)
        h_t = a_t ⊙ h_{t−1} + √(1 − a_t²) ⊙ (i_t ⊙ u_t),   a_t = σ(Λ)^(8 r_t)
        out = (h ⊙ GELU(x W_G)) W_O

    Each channel is a head of its own, as it decays by itself.

    Args:
        width: number of channels; default: dim.
        blocks: on the diagonals of the gates' matrices, which are zero elsewhere.
        kernel_size: number of tokens that the convolution mixes, including the token itself.
        min_decay: smallest σ(Λ)^8 at the start; the largest is 0.999.
    """

    decided_options = ("backend", "heads", "head_dim")
    no_decay = ("decay",)
    convolves_qkv = True

    def __init__(
        self,
        *,
        dim: int,
        width: int | None = None,
        blocks: int = 4,
        kernel_size: int = 4,
        min_decay: float = 0.9,
        **options: Any,
    ) -> None:
        width = dim if width is None else width
        check_positive(width=width, blocks=blocks)
        if width % blocks:
            raise UserError(
                f"width must be a multiple of blocks, got width={width}, blocks={blocks}."
            )
        if not 0.0 < min_decay < MAX_DECAY:
            raise UserError(f"min_decay must be above 0 and below {MAX_DECAY}, got {min_decay}.")
        super().__init__(backend="torch", dim=dim, heads=width, head_dim=1, **options)
        self.convolution = ShortConvolution(width, kernel_size, bias=True)
        self.recurrence_gate = BlockDiagonalLinear(width, blocks)
        self.input_gate = BlockDiagonalLinear(width, blocks)
        # So that σ(Λ)^c is uniform.
        slowest = -torch.empty(width).uniform_(min_decay, MAX_DECAY).log() / RATE
        self.decay = nn.Parameter(-torch.log(torch.expm1(slowest)))

    def create_projections(self, bias: bool) -> None:
        self.value = nn.Linear(self.dim, self.heads, bias=bias)
        self.gate = nn.Linear(self.dim, self.heads, bias=bias)
        self.output = nn.Linear(self.heads, self.dim, bias=bias)

    @property
    def position_dim(self) -> int:
        """Return the model's width: no encoding acts on heads, so theirs does not matter."""
        return self.dim

    def project_steps(self, x: Tensor, positions: Tensor, convolve: ConvolutionRunner) -> Steps:
        u = convolve(self.convolution, self.value(x))
        gate = self.split_heads(self.recurrence_gate(u)).sigmoid()
        decay = -RATE * softplus(-upcast(self.decay))[:, None, None] * gate
        # Clamped, as the root has no finite derivative at zero, where the gate is closed.
        k = (-torch.expm1(2.0 * decay)).clamp(min=1e-12).sqrt()
        k = k * self.split_heads(self.input_gate(u)).sigmoid()
        return Steps(torch.ones_like(k), k, self.split_heads(u), decay=decay)

    def recurrence(self, steps: Steps, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return channel_scan(steps, state)

    def implied_weights(self, steps: Steps, x: Tensor, span: TokenSpan) -> Tensor:
        return decayed_product(steps.use_unit_values().apply_mask(span))[0]

    def project_output(self, attended: Tensor, x: Tensor) -> Tensor:
        y = rearrange(attended, "b h t c -> b t (h c)") * gelu(self.gate(x), approximate="tanh")
        return self.output(y.to(x.dtype))

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        u = self.convolution.naive(naive.linear(self.value, x), visible)
        r, i = (torch.sigmoid(part.naive(u)) for part in (self.recurrence_gate, self.input_gate))
        a = torch.sigmoid(self.decay) ** (8 * r)
        a, additions = (
            naive.split_heads(part, self.heads) for part in (a, torch.sqrt(1 - a**2) * i * u)
        )
        ones = torch.ones_like(additions)
        states = run_states(a[..., None], ones, additions, visible)
        h = torch.cat([*states[..., 0].unbind(dim=1)], dim=-1)
        gate = naive.linear(self.gate, x)
        gate = gate / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
        return naive.linear(self.output, h * gate)


class BlockDiagonalLinear(nn.Module):
    """A linear map of channels within each of several blocks, with a bias."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        width = channels // blocks
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(blocks, width, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (len(self.weight), -1))
        return torch.einsum("b t n i, n i o -> b t n o", parts, self.weight).flatten(-2) + self.bias

    def naive(self, x: Tensor) -> Tensor:
        """Multiply by the whole matrix, for the tests."""
        return x @ torch.block_diag(*self.weight) + self.bias
