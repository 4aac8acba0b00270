"""Recurrences of single channels, against the blocks of transformers."""

import torch
from transformers import MambaConfig, RecurrentGemmaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import (
    RecurrentGemmaRecurrentBlock,
)

from attention_zoo import create_attention
from attention_zoo.masks import Mask
from tests.conformance.definition import key_mask
from tests.parity.compared import Outcome, outcome, parity
from tests.parity.references_decay import randomise

DIM, LENGTH = 32, 70


@parity("rg_lru", "transformers RecurrentGemmaRecurrentBlock")
def rg_lru() -> tuple[Outcome, Outcome]:
    """The whole block, at positions from one on: theirs makes an exception of the position zero."""
    ours = create_attention("rg_lru", dim=DIM, width=48, bias=True, role="causal")
    randomise(ours, "recurrence_gate.bias", "input_gate.bias")
    config = RecurrentGemmaConfig(
        hidden_size=DIM,
        lru_width=48,
        num_attention_heads=4,
        conv1d_width=4,
        hidden_activation="gelu_pytorch_tanh",
    )
    theirs = RecurrentGemmaRecurrentBlock(config, layer_idx=0)
    with torch.no_grad():
        pairs = {
            "linear_x.weight": ours.value.weight,
            "linear_x.bias": ours.value.bias,
            "linear_y.weight": ours.gate.weight,
            "linear_y.bias": ours.gate.bias,
            "linear_out.weight": ours.output.weight,
            "linear_out.bias": ours.output.bias,
            "conv_1d.bias": ours.convolution.bias,
            "rg_lru.recurrent_gate_weight": ours.recurrence_gate.weight,
            "rg_lru.input_gate_weight": ours.input_gate.weight,
        }
        others = {
            "conv_1d.weight": ours.convolution.weight[:, None],
            "rg_lru.recurrent_gate_bias": ours.recurrence_gate.bias.view(4, -1),
            "rg_lru.input_gate_bias": ours.input_gate.bias.view(4, -1),
            "rg_lru.recurrent_param": -ours.decay,
        }
    theirs.load_state_dict(pairs | others)
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    positions = torch.arange(1, LENGTH + 1).expand(2, -1)
    expected, _ = theirs(x, positions, None, use_cache=False)
    mine = [x, *pairs.values()]
    return outcome(ours(x), mine), outcome(expected, [x, *(theirs.get_parameter(p) for p in pairs)])


@parity("selective_scan", "transformers MambaMixer")
def selective_scan() -> tuple[Outcome, Outcome]:
    """The whole block, one row with padding at the left."""
    ours = create_attention("selective_scan", dim=DIM, state_dim=8, rank=3, role="causal")
    randomise(ours, "step.1.bias", "skip", "rate")
    config = MambaConfig(hidden_size=DIM, state_size=8, time_step_rank=3, num_hidden_layers=1)
    theirs = MambaMixer(config, layer_idx=0)
    pairs = {
        "out_proj.weight": ours.output.weight,
        "conv1d.bias": ours.convolution.bias,
        "dt_proj.weight": ours.step[1].weight,
        "dt_proj.bias": ours.step[1].bias,
        "A_log": ours.rate,
        "D": ours.skip,
    }
    projections = (ours.step[0].weight, ours.key.weight, ours.query.weight)
    others = {
        "in_proj.weight": torch.cat([ours.value.weight, ours.gate.weight]),
        "x_proj.weight": torch.cat(projections),
        "conv1d.weight": ours.convolution.weight[:, None],
    }
    theirs.load_state_dict(pairs | others)
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    real = key_mask("left", 2, LENGTH)
    mine = [x, *pairs.values()]
    other = [x, *(theirs.get_parameter(part) for part in pairs)]
    return (
        outcome(ours(x, mask=Mask(key_mask=real))[real], mine),
        outcome(theirs(x, attention_mask=real)[real], other),
    )
