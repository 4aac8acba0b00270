"""Networks that are trained while they read, against flash-linear-attention's plain forms."""

import torch
from torch import Tensor, nn

from attention_zoo import create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.masks import TokenSpan
from tests.parity.compared import Outcome, fla, fla_functions, outcome, parity

DIM, HEADS, LENGTH, SIZE = 32, 4, 70, 16


def ours_and_tokens(name: str, length: int, size: int) -> tuple[Attention, Tensor]:
    """Return an entry with parameters that are not those of the start, and tokens."""
    ours = create_attention(name, dim=DIM, heads=HEADS, role="causal", mini_batch_size=size)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return ours, torch.randn(2, length, DIM, requires_grad=True)


def project_steps(ours: Attention, x: Tensor) -> Steps:
    """Return the steps of tokens, before they are split into mini-batches."""
    positions = torch.arange(x.shape[1])[None]
    return ours.project_steps(x, positions, ConvolutionRunner(TokenSpan()))


def compare_ttt_linear(
    size: int, leaves: list[str], *, equal_rates: bool
) -> tuple[Outcome, Outcome]:
    """Compare what the inner network returns.

    Their form adds this, where the paper adds the query, to its norm. And the rate of a gradient is
    that of the token that reads it, not that of its own: so all are equal, or each is alone.
    """
    ours, x = ours_and_tokens("ttt_linear", LENGTH, size)
    if equal_rates:
        nn.init.zeros_(ours.rate.weight)
    trace, batches, _ = ours.run(project_steps(ours, x), TokenSpan())
    z = batches.join(trace.out)
    steps = project_steps(ours, x)
    (layer,) = ours.layers
    rates = ours.place_rates()[torch.arange(LENGTH) % size] * steps.rate
    expected, *_ = fla("ttt").chunk_ttt_linear_ref(
        *(part.transpose(1, 2).clone() for part in (steps.q, steps.k, steps.v)),
        ours.gain,
        ours.shift,
        rates.transpose(1, 2),
        scale=1.0,
        mini_batch_size=size,
        initial_state=layer.weight.expand(2, -1, -1, -1),
        initial_state_bias=layer.bias.expand(2, -1, -1, -1),
    )
    parameters = [x, *(ours.get_parameter(leaf) for leaf in leaves)]
    return (
        outcome(ours.project_output(ours.normalise(z, z), x), parameters),
        outcome(ours.project_output(expected.transpose(1, 2), x), parameters),
    )


@parity("ttt_linear", "flash-linear-attention chunk_ttt_linear_ref")
def ttt_linear() -> tuple[Outcome, Outcome]:
    """In mini-batches, of which the last has fewer tokens, with equal rates."""
    names = ["query.weight", "key.weight", "value.weight", "rate.bias", "place_rate"]
    names += ["gain", "shift", "layers.0.weight", "layers.0.bias", "norm.weight", "output.weight"]
    return compare_ttt_linear(SIZE, names, equal_rates=True)


@parity("ttt_linear", "flash-linear-attention chunk_ttt_linear_ref")
def ttt_linear_token_by_token() -> tuple[Outcome, Outcome]:
    """In mini-batches of one token, each with its own rate."""
    names = ["query.weight", "key.weight", "value.weight", "rate.weight", "rate.bias"]
    return compare_ttt_linear(1, [*names, "gain", "shift", "layers.0.weight"], equal_rates=False)


@parity("titans", "flash-linear-attention combine_params")
def titans() -> tuple[Outcome, Outcome]:
    """How momentum and forgetting combine the gradients of a mini-batch.

    Their gradients themselves are no reference: they divide one of three terms by σ.
    """
    ours, x = ours_and_tokens("titans", SIZE, SIZE)
    steps = project_steps(ours, x)
    taken = torch.ones(2, SIZE, dtype=torch.bool)
    schedule = ours.schedule({"rate": steps.rate, "decay": steps.decay, "taken": taken})
    found = [schedule.first, schedule.second, schedule.tokens, schedule.kept, schedule.added]
    steps = project_steps(ours, x)
    forgetting, momentum = steps.decay.exp().unbind(dim=-1)
    theirs = fla_functions("ops/titans/naive.py")
    beta, _, f, _, _, g, m, n = theirs.combine_params(
        steps.rate, 1 - forgetting[..., None], momentum[..., None], SIZE
    )
    expected = [beta, f, g, m, n]
    gates = [*ours.rate.parameters(), *ours.momentum.parameters(), *ours.decay.parameters()]
    return (
        outcome(torch.cat([part.flatten(2) for part in found], dim=-1), [x, *gates]),
        outcome(torch.cat([part.reshape(2, HEADS, -1) for part in expected], dim=-1), [x, *gates]),
    )
