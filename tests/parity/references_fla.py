"""Linear attention, against the plain form of flash-linear-attention, in float32."""

import torch
from torch.nn.functional import elu

from attention_zoo import create_attention
from tests.parity.compared import Outcome, fla, outcome, parity

DIM, HEADS, LENGTH = 32, 4, 70


@parity("linear", "flash-linear-attention naive_recurrent_linear_attn")
def linear() -> tuple[Outcome, Outcome]:
    ours = create_attention("linear", dim=DIM, heads=HEADS, role="causal")
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    q, k, v = (part(x).unflatten(-1, (HEADS, -1)) for part in (ours.query, ours.key, ours.value))
    expected, _ = fla("linear_attn").naive_recurrent_linear_attn(
        elu(q) + 1, elu(k) + 1, v, normalize=True
    )
    leaves = [x, *ours.parameters()]
    return outcome(ours(x), leaves), outcome(ours.output(expected.flatten(-2)), leaves)
