"""States that decay, against flash-linear-attention's plain forms and transformers."""

import torch
from torch import Tensor, nn
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from attention_zoo import create_attention
from attention_zoo.attention.base import Attention
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.masks import Mask, TokenSpan
from tests.conformance.definition import key_mask
from tests.parity.compared import Outcome, fla, outcome, parity

DIM, HEADS, GROUPS, STATE, LENGTH = 32, 4, 2, 16, 70


def randomise(module: Attention, *names: str) -> None:
    """Parameters that start alike, or near zero, would hide an exchange."""
    for name in names:
        nn.init.normal_(module.get_parameter(name))


def project_steps(attention: Attention, x: Tensor) -> tuple[Tensor, ...]:
    """Return q, k, v and the decay as [b t h c], in the order of fla."""
    positions = torch.arange(x.shape[1])[None]
    steps = attention.project_steps(x, positions, ConvolutionRunner(TokenSpan()))
    return tuple(part.transpose(1, 2) for part in (steps.q, steps.k, steps.v, steps.decay))


@parity("retention", "flash-linear-attention naive_retention")
def retention() -> tuple[Outcome, Outcome]:
    ours = create_attention("retention", dim=DIM, heads=HEADS, role="causal")
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    q, k, v = (
        part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for part in (ours.query, ours.key, ours.value)
    )
    expected = ours.project_output(fla("retention").naive_retention(q, k, v), x)
    leaves = [x, *ours.parameters()]
    return outcome(ours(x), leaves), outcome(expected, leaves)


@parity("gated_linear", "flash-linear-attention naive_recurrent_gla")
def gated_linear() -> tuple[Outcome, Outcome]:
    """Some channels forget within a few tokens, others hardly at all."""
    ours = create_attention("gated_linear", dim=DIM, heads=HEADS, role="causal", temperature=2.0)
    randomise(ours, "forget.0.weight", "forget.1.bias")
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    q, k, v = (part(x).unflatten(-1, (HEADS, -1)) for part in (ours.query, ours.key, ours.value))
    gate = nn.functional.logsigmoid(ours.forget(x)).unflatten(-1, (HEADS, -1)) / 2.0
    expected, _ = fla("gla").naive_recurrent_gla(q, k, v, gate)
    leaves = [x, *ours.parameters()]
    return (
        outcome(ours(x), leaves),
        outcome(ours.project_output(expected.transpose(1, 2), x), leaves),
    )


def new_state_space(name: str) -> Attention:
    ours = create_attention(
        name, dim=DIM, heads=HEADS, groups=GROUPS, state_dim=STATE, role="causal"
    )
    randomise(ours, "step_bias", "skip", "scale")
    return ours


@parity("state_space_dual", "transformers Mamba2Mixer")
def state_space_dual() -> tuple[Outcome, Outcome]:
    """The whole block, one row with padding at the left."""
    ours = new_state_space("state_space_dual")
    config = Mamba2Config(
        hidden_size=DIM,
        num_heads=HEADS,
        head_dim=ours.value_dim,
        state_size=STATE,
        n_groups=GROUPS,
        chunk_size=16,
        num_hidden_layers=1,
    )
    theirs = Mamba2Mixer(config, layer_idx=0)
    projections = (ours.gate, ours.value, ours.key, ours.query, ours.step)
    theirs.load_state_dict(
        {
            "in_proj.weight": torch.cat([part.weight for part in projections]),
            "conv1d.weight": ours.convolution.weight[:, None],
            "conv1d.bias": ours.convolution.bias,
            "dt_bias": ours.step_bias,
            "A_log": ours.rate,
            "D": ours.skip,
            "norm.weight": ours.scale,
            "out_proj.weight": ours.output.weight,
        }
    )
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    real = key_mask("left", 2, LENGTH)
    pairs = (
        (x, x),
        (ours.output.weight, theirs.out_proj.weight),
        (ours.convolution.bias, theirs.conv1d.bias),
        (ours.step_bias, theirs.dt_bias),
        (ours.rate, theirs.A_log),
        (ours.skip, theirs.D),
        (ours.scale, theirs.norm.weight),
    )
    mine, other = zip(*pairs, strict=True)
    return (
        outcome(ours(x, mask=Mask(key_mask=real))[real], mine),
        outcome(theirs(x, attention_mask=real)[real], other),
    )


@parity("state_space_dual", "flash-linear-attention naive_recurrent_simple_gla")
def state_space_recurrence() -> tuple[Outcome, Outcome]:
    ours = new_state_space("state_space_dual")
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    q, k, v, decay = project_steps(ours, x)
    assert (v.shape[-1], q.shape[-1]) == (STATE, STATE), "theirs has one width for both"
    attended, _ = fla("simple_gla").naive_recurrent_simple_gla(q, k, v, decay[..., 0], scale=1.0)
    attended = attended + ours.skip[:, None] * v
    leaves = [x, *ours.parameters()]
    return outcome(ours(x), leaves), outcome(
        ours.project_output(attended.transpose(1, 2), x), leaves
    )


@parity("log_linear", "flash-linear-attention naive_log_linear_attn")
def log_linear() -> tuple[Outcome, Outcome]:
    """In float64: theirs takes decays as differences of sums from the first token on.

    In float32 that costs their gradient by the rate its digits: 2.5e-4 from float64, ours 6e-7.
    """
    ours = new_state_space("log_linear").double()
    randomise(ours, "level_scale")
    x = torch.randn(2, LENGTH, DIM, dtype=torch.float64, requires_grad=True)
    q, k, v, decay = project_steps(ours, x)
    attended = fla("log_linear_attn").naive_log_linear_attn(
        q, k, v, decay[..., 0], ours.level_weights(x).transpose(1, 2)
    )
    attended = attended + ours.skip[:, None] * v
    leaves = [x, *ours.parameters()]
    return outcome(ours(x), leaves), outcome(
        ours.project_output(attended.transpose(1, 2), x), leaves
    )
