"""Gated DeltaNet-2, against the plain form of flash-linear-attention."""

import torch

from attention_zoo import create_attention
from attention_zoo.attention.recurrent.convolution import ConvolutionRunner
from attention_zoo.masks import TokenSpan
from tests.parity.compared import Outcome, fla, outcome, parity

DIM, HEADS, LENGTH = 32, 4, 70


@parity("gated_delta_2", "flash-linear-attention naive_recurrent_gdn2")
def gated_delta_2() -> tuple[Outcome, Outcome]:
    ours = create_attention("gated_delta_2", dim=DIM, heads=HEADS, role="causal")
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    convolve = ConvolutionRunner(TokenSpan())
    steps = ours.project_steps(x, torch.arange(LENGTH)[None], convolve)
    erase, write = (
        gate(x).sigmoid().unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for gate in (ours.erase, ours.write)
    )
    parts = steps.q, steps.k, steps.v / write, steps.decay, erase, write
    expected, _ = fla("gdn2").naive_recurrent_gdn2(
        *(part.transpose(1, 2) for part in parts), scale=1.0
    )
    leaves = [x, *ours.parameters()]
    return outcome(ours(x), leaves), outcome(
        ours.project_output(expected.transpose(1, 2), x), leaves
    )
