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
        outcome(ours.project_output(ours.finish(z, z), x), parameters),
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


@parity("titans", "flash-linear-attention titans_linear")
def titans() -> tuple[Outcome, Outcome]:
    """In one mini-batch, on a memory that is zero before it.

    Their memory has a layer norm, whose gradient divides only one of three terms by σ. It is the
    identity, but for a factor, where ε is huge; and their gradient is then constant. Their target
    is v − k, and the factor of their rates is 2 c.
    """
    ours, x = ours_and_tokens("titans", LENGTH, LENGTH)
    nn.init.zeros_(ours.layers[0].weight)
    steps, width = project_steps(ours, x), DIM // HEADS
    assert steps.decay is not None
    forgetting, momentum = steps.decay.exp().split(1, dim=-1)
    expected, _ = fla_functions("ops/titans/naive.py").titans_linear(
        steps.q,
        steps.k,
        steps.v + steps.k,
        torch.ones(HEADS, width),
        torch.zeros(HEADS, width),
        steps.rate / (2 * width),
        1 - forgetting,
        momentum,
        eps=1e30,
        chunk_size=LENGTH,
        initial_state=None,
        output_final_state=False,
    )
    leaves = [x, *(p for name, p in ours.named_parameters() if not name.startswith("layers"))]
    return outcome(ours(x), leaves), outcome(ours.project_output(expected, x), leaves)
