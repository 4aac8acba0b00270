"""States with fixed rates and learned gates, against flash-linear-attention and transformers."""

import torch
from torch import Tensor, nn
from transformers import MiniMaxConfig
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

from attention_zoo import create_attention
from attention_zoo.attention.base import Attention
from tests.parity.compared import Outcome, fla, outcome, parity
from tests.parity.references_decay import project_steps, randomise

DIM, HEADS, LENGTH = 32, 4, 70


def end(attention: Attention, attended: Tensor, x: Tensor) -> Tensor:
    """Return the output for sums [b t h c] of theirs."""
    return attention.project_output(attended.transpose(1, 2), x)


@parity("lightning", "transformers MiniMaxLightningAttention")
def lightning() -> tuple[Outcome, Outcome]:
    """The whole layer, the second of three, over blocks of another size."""
    ours = create_attention("lightning", dim=DIM, heads=HEADS, role="causal", layer=1, layers=3)
    randomise(ours, "norm.weight")
    config = MiniMaxConfig(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=DIM // HEADS,
        num_hidden_layers=3,
        layer_types=["linear_attention"] * 3,
        block_size=16,
    )
    theirs = MiniMaxLightningAttention(config, layer_idx=1)
    heads = [part.weight.view(HEADS, -1, DIM) for part in (ours.query, ours.key, ours.value)]
    weights = {
        "qkv_proj.weight": torch.cat(heads, dim=1).flatten(0, 1),
        "out_proj.weight": ours.output.weight,
        "output_gate.weight": ours.gate.weight,
        "norm.weight": ours.norm.weight,
    }
    theirs.load_state_dict(weights, strict=False)
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    mine = [x, ours.output.weight, ours.gate.weight, ours.norm.weight]
    other = [x, theirs.out_proj.weight, theirs.output_gate.weight, theirs.norm.weight]
    return outcome(ours(x), mine), outcome(theirs(x, (x, x), None)[0], other)


@parity("hgrn2", "flash-linear-attention naive_recurrent_gla")
def hgrn2() -> tuple[Outcome, Outcome]:
    """In the second layer, whose gates have lower bounds."""
    ours = create_attention("hgrn2", dim=DIM, heads=HEADS, role="causal", layer=1)
    randomise(ours, "bound", "norm.weight")
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    q, logits, v = (part(x) for part in (ours.query, ours.key, ours.value))
    bound = ours.bound.sigmoid()
    forget = bound + (1 - bound) * logits.sigmoid()
    q, k, v, gate = (
        part.unflatten(-1, (HEADS, -1))
        for part in (nn.functional.silu(q), 1 - forget, v, forget.log())
    )
    attended, _ = fla("gla").naive_recurrent_gla(q * (DIM // HEADS) ** 0.5, k, v, gate)
    leaves = [x, *ours.parameters()]
    return outcome(ours(x), leaves), outcome(end(ours, attended, x), leaves)


@parity("gated_slot", "flash-linear-attention naive_recurrent_gsa")
def gated_slot() -> tuple[Outcome, Outcome]:
    """Some slots forget within a few tokens, others hardly at all."""
    ours = create_attention(
        "gated_slot", dim=DIM, heads=HEADS, role="causal", slots=6, temperature=2.0
    )
    randomise(ours, "forget.weight", "norm.weight")
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    q, k, v, decay = project_steps(ours, x)
    attended, _ = fla("gsa").naive_recurrent_gsa(q, k, v, 1 - decay.exp(), decay, scale=1.0)
    leaves = [x, *ours.parameters()]
    return outcome(ours(x), leaves), outcome(end(ours, attended, x), leaves)
