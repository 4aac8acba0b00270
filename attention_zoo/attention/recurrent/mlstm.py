"""The mLSTM of xLSTM (Beck et al. 2024)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, pad

from attention_zoo.attention import naive
from attention_zoo.attention.recurrent.base import register_recurrent
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.attention.recurrent.decayed import DecayedAttention
from attention_zoo.attention.recurrent.decayed_product import decayed_product
from attention_zoo.attention.recurrent.naive import read_states, run_states
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.masks import TokenSpan
from attention_zoo.precision import autocast_disabled, safe_divide, upcast


@register_recurrent(
    name="mlstm",
    also_called=("xlstm",),
    paper="Beck et al. 2024, arXiv 2405.04517",
    equation="C ← f C + i k vᵀ,  n ← f n + i k;  out = o ⊙ Cᵀq / max(|nᵀq|, 1)",
    reference="closed form",
    deviations="the memory alone, without the block's projection to twice the width, convolution "
    "and skip; a norm of each head comes before the output gate, as in the authors' code; it "
    "undoes factors of a head, so the input gate has no bias",
    positions=("positions", "embeddings", "heads"),
    cache="a matrix, a vector and a number for each head",
    search_space={"forget_bias": (1.0, 5.0)},
)
class MLSTMAttention(DecayedAttention):
    """An LSTM whose memory is a matrix, with exponential input gates.

        C_t = f_t C_{t−1} + i_t k_t v_tᵀ,   n_t = f_t n_{t−1} + i_t k_t
        h_t = C_tᵀ q_t / max(|n_tᵀ q_t|, 1),   out_t = σ(W x_t + b) ⊙ norm(h_t)

    with i = exp(W x), f = σ(W x + b), and keys divided by √c. No state overflows: C and n are
    stored divided by e^m, for the largest logarithm m of an input gate that has decayed since.

    Args:
        forget_bias: b of f in the first head at the start; that in the last head is 3 more.
    """

    decided_options = ("backend",)
    num_states = 2

    def __init__(self, *, forget_bias: float = 3.0, **options: Any) -> None:
        super().__init__(backend="torch", **options)
        self.gate = nn.Linear(self.dim, self.heads * self.head_dim)
        self.input_gate = nn.Linear(self.dim, self.heads, bias=False)
        self.forget_gate = nn.Linear(self.dim, self.heads)
        # From 3 to 6, as the authors: some heads forget within tens of tokens, and others keep
        # hundreds.
        biases = torch.linspace(forget_bias, forget_bias + 3.0, self.heads)
        self.forget_gate.bias = nn.Parameter(biases)

    def project_steps(self, x: Tensor, positions: Tensor, convolve: ConvolutionRunner) -> Steps:
        q, k = self.position.rotate(self.project_query(x), self.project_key_value(x)[0], positions)
        decay = logsigmoid(self.split_heads(self.forget_gate(x)))
        v = self.split_heads(self.value(x))
        # The rate is log i until the gates are stabilised.
        gates = self.split_heads(self.input_gate(x))
        return Steps(upcast(q), upcast(k) * self.head_dim**-0.5, v, decay=decay, rate=gates)

    def recur(
        self, steps: Steps, x: Tensor, span: TokenSpan, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Read the memory; the states are C and n side by side [b h c e+1], and m [b h 1 1]."""
        memory, maximum = states if states else (None, None)
        with autocast_disabled(x):
            steps, maxima = stabilise(steps, span, maximum)
            # A value of 1 makes n a column of C.
            steps = steps._replace(v=pad(steps.v, (0, 1), value=1.0))
            out, memory = decayed_product(steps.apply_mask(span), memory)
            out = safe_divide(out[..., :-1], compute_denominators(out[..., -1:], maxima))
        return out, (memory, maxima[:, :, -1:])

    def implied_weights(self, steps: Steps, x: Tensor, span: TokenSpan) -> Tensor:
        steps, maxima = stabilise(steps, span)
        weights = super().implied_weights(steps, x, span)
        sums = weights.sum(dim=-1, keepdim=True)
        return safe_divide(weights, compute_denominators(sums, maxima))

    def output_gate(self, x: Tensor) -> Tensor:
        return self.split_heads(self.gate(x)).sigmoid()

    def state_size(self, tokens: int) -> int:
        return self.heads * (self.head_dim * (self.head_dim + 1) + 1)

    def naive(self, x: Tensor, source: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        q, k, v = naive.linear_qkv(self, x)
        q, k = naive.rotate_qk(self, q, k, positions)
        k = k / self.head_dim**0.5
        i = torch.exp(naive.linear_heads(self.input_gate, x, self.heads))
        f = torch.sigmoid(naive.linear_heads(self.forget_gate, x, self.heads))
        transitions = torch.diag_embed(f.expand_as(k))
        memory = read_states(q, run_states(transitions, i * k, v, visible))
        ones = torch.ones_like(v[..., :1])
        normaliser = read_states(q, run_states(transitions, i * k, ones, visible))
        h = memory / normaliser.abs().clamp(min=1.0)
        gate = torch.sigmoid(naive.linear_heads(self.gate, x, self.heads))
        return naive.linear_output(self.output, gate * naive.layer_norm(h, epsilon=1e-5))


def stabilise(steps: Steps, span: TokenSpan, maximum: Tensor | None = None) -> tuple[Steps, Tensor]:
    """Return steps whose gates are divided by e^m, and m after each token [b h t 1].

    The maximum [b h 1 1] is m before the first token. No result depends on m, so it may be rough,
    and has no gradient.
    """
    decay, gates = steps.apply_mask(span).decay, steps.rate
    assert decay is not None and steps.decay is not None and gates is not None
    if span.key_mask is not None:
        gates = gates.masked_fill(~span.key_mask[:, None, :, None], float("-inf"))
    with torch.no_grad():
        maximum = torch.zeros_like(gates[:, :, :1]) if maximum is None else maximum
        # A new segment forgets by a number: infinite sums have no differences.
        sums = decay.clamp(min=-1e4).cumsum(dim=2)
        maxima = sums + torch.maximum((gates - sums).cummax(dim=2).values, maximum)
        changes = torch.cat([maximum, maxima[:, :, :-1]], dim=2) - maxima
    k = steps.k * (gates - maxima).exp()
    return steps._replace(k=k, decay=steps.decay + changes, rate=None), maxima


def compute_denominators(sums: Tensor, maxima: Tensor) -> Tensor:
    """Compute max(|nᵀq|, 1) / e^m from nᵀq / e^m, both [b h t 1]."""
    return torch.maximum(sums.abs(), (-maxima).exp())
