"""The delta rules, against flash-linear-attention's plain forms and transformers, in float32.

The plain forms have no projections, convolutions, norms and gates: ours are used.
"""

import torch
from torch import Tensor
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from attention_zoo import create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.masks import Mask, TokenSpan
from tests.conformance.definition import key_mask
from tests.parity.compared import Outcome, fla, outcome, parity

DIM, HEADS, LENGTH = 32, 4, 70


def ours_and_steps(name: str) -> tuple[Attention, Tensor, Steps]:
    """Return an entry, tokens, and their steps before the recurrence."""
    ours = create_attention(name, dim=DIM, heads=HEADS, role="causal")
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    positions = torch.arange(LENGTH)[None]
    return ours, x, ours.project_steps(x, positions, ConvolutionRunner(TokenSpan()))


@parity("delta", "flash-linear-attention delta_rule_recurrence")
def delta() -> tuple[Outcome, Outcome]:
    ours, x, steps = ours_and_steps("delta")
    k, scale = steps.erase, (DIM // HEADS) ** 0.5
    beta = ours.rate(x).sigmoid().transpose(1, 2)
    expected, _ = fla("delta_rule").delta_rule_recurrence(steps.q * scale, k, steps.v, beta)
    leaves = [x, *ours.parameters()]
    return outcome(ours(x), leaves), outcome(ours.project_output(expected, x), leaves)


@parity("gated_delta", "transformers Qwen3NextGatedDeltaNet")
def gated_delta() -> tuple[Outcome, Outcome]:
    """The whole layer, with one row that is padded at the left."""
    ours = create_attention("gated_delta", dim=DIM, heads=HEADS, role="causal")
    width = DIM // HEADS
    config = Qwen3NextConfig(
        hidden_size=DIM,
        linear_num_key_heads=HEADS,
        linear_num_value_heads=HEADS,
        linear_key_head_dim=width,
        linear_value_head_dim=width,
        num_hidden_layers=4,
    )
    theirs = Qwen3NextGatedDeltaNet(config, layer_idx=0)
    torch.nn.init.normal_(ours.norm.weight)
    with torch.no_grad():
        # The rows of each head follow each other: q, k, v, gate; then rate and decay.
        parts = [part.weight for part in (ours.query, ours.key, ours.value, ours.gate)]
        theirs.in_proj_qkvz.weight.copy_(by_heads(parts))
        theirs.in_proj_ba.weight.copy_(by_heads([ours.rate.weight, ours.decay.weight]))
        convolutions = (ours.query_convolution, ours.key_convolution, ours.value_convolution)
        theirs.conv1d.weight.copy_(torch.cat([part.weight for part in convolutions])[:, None])
        theirs.A_log.copy_(ours.log_speed)
        theirs.dt_bias.copy_(ours.step_bias)
        theirs.norm.weight.copy_(ours.norm.weight)
        theirs.out_proj.weight.copy_(ours.output.weight)
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    real = key_mask("left", 2, LENGTH)
    expected = theirs(x, attention_mask=real)
    return (
        outcome(
            ours(x, mask=Mask(key_mask=real))[real],
            [x, ours.log_speed, ours.step_bias, ours.norm.weight, ours.output.weight],
        ),
        outcome(
            expected[real],
            [x, theirs.A_log, theirs.dt_bias, theirs.norm.weight, theirs.out_proj.weight],
        ),
    )


def by_heads(weights: list[Tensor]) -> Tensor:
    """Join the rows of several projections by heads."""
    parts = [weight.unflatten(0, (HEADS, -1)) for weight in weights]
    return torch.cat(parts, dim=1).flatten(0, 1)


@parity("kimi_delta", "flash-linear-attention naive_recurrent_kda")
def kimi_delta() -> tuple[Outcome, Outcome]:
    ours, x, steps = ours_and_steps("kimi_delta")
    assert steps.decay is not None
    q, k, v, g = (part.transpose(1, 2) for part in (steps.q, steps.erase, steps.v, steps.decay))
    expected, _ = fla("kda").naive_recurrent_kda(q, k, v, g, ours.rate(x).sigmoid(), scale=1.0)
    leaves = [x, *ours.parameters()]
    return outcome(ours(x), leaves), outcome(
        ours.project_output(expected.transpose(1, 2), x), leaves
    )


@parity("delta_product", "flash-linear-attention naive_recurrent_gated_delta_product")
def delta_product() -> tuple[Outcome, Outcome]:
    return product_outcomes("delta_product")


@parity("gated_delta_product", "flash-linear-attention naive_recurrent_gated_delta_product")
def gated_delta_product() -> tuple[Outcome, Outcome]:
    return product_outcomes("gated_delta_product")


def product_outcomes(name: str) -> tuple[Outcome, Outcome]:
    """Compare with their recurrence, to which each key of a state is a token of its own."""
    ours, x, steps = ours_and_steps(name)
    states, n = steps.q.shape[1], ours.num_householder
    k, v, beta = (
        part.unflatten(1, (states, n)).permute(0, 3, 2, 1, 4).flatten(1, 2)
        for part in (steps.erase, steps.v, steps.rate)
    )
    q = steps.q.transpose(1, 2)
    g = None if steps.decay is None else steps.decay[..., 0].transpose(1, 2)
    expected, _ = fla("gated_delta_product").naive_recurrent_gated_delta_product(
        q, k, v, g, beta[..., 0], scale=1.0, num_householder=n
    )
    leaves = [x, *ours.parameters()]
    return outcome(ours(x), leaves), outcome(
        ours.project_output(expected.transpose(1, 2), x), leaves
    )


@parity("path", "flash-linear-attention naive_path_attn")
def path() -> tuple[Outcome, Outcome]:
    """Without the forget gate that their form can also have."""
    ours, x, steps = ours_and_steps("path")
    q, k, v, w = (part.transpose(1, 2) for part in (steps.q, steps.k, steps.v, steps.erase))
    beta = 2 * ours.rate(x).sigmoid()
    gate = torch.zeros(2, LENGTH, HEADS)
    expected = fla("path_attn").naive_path_attn(q, k, v, w, beta, gate, scale=1.0)
    leaves = [x, *ours.parameters()]
    return outcome(ours(x), leaves), outcome(
        ours.project_output(expected.transpose(1, 2), x), leaves
    )


@parity("rwkv7", "flash-linear-attention dplr_recurrence")
def rwkv7() -> tuple[Outcome, Outcome]:
    """Their state is read before it decays, ours after; and they divide queries by √c."""
    ours, x, steps = ours_and_steps("rwkv7")
    assert steps.decay is not None and steps.write is not None
    q, removed = steps.q * (DIM // HEADS) ** 0.5, -steps.erase * steps.decay.exp()
    expected, _ = fla("generalized_delta_rule/dplr").dplr_recurrence(
        q, steps.k, steps.v, removed, steps.write, steps.decay
    )
    own = torch.einsum("bhtc,hc,bhtc,bhte->bhte", steps.q, ours.bonus[:, 0], steps.k, steps.v)
    leaves = [x, *ours.parameters()]
    return outcome(ours(x), leaves), outcome(ours.project_output(expected + own, x), leaves)


@parity("mesa", "flash-linear-attention naive_mesa_net_exact")
def mesa() -> tuple[Outcome, Outcome]:
    """Ours by conjugate gradients, theirs by a solver."""
    ours, x, steps = ours_and_steps("mesa")
    assert steps.decay is not None
    q, k, v, g = (part.transpose(1, 2) for part in (steps.q, steps.erase, steps.v, steps.decay))
    expected, *_ = fla("mesa_net").naive_mesa_net_exact(
        q, k, v, g[..., 0], ours.full_ridge()[:, 0, 0], ours.rate(x).sigmoid()
    )
    leaves = [x, *ours.parameters()]
    return outcome(ours(x), leaves), outcome(
        ours.project_output(expected.transpose(1, 2), x), leaves
    )
