"""Against transformers, by its eager attention."""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from attention_zoo import create_attention
from attention_zoo.attention.base import Attention
from tests.parity.compared import Outcome, outcome, parity

DIM, HEADS, KV_HEADS, LENGTH = 32, 4, 2, 19
POSITIONS = torch.arange(LENGTH)[None]


def copy_projections(ours: Attention, theirs: nn.Module) -> None:
    """Of the names that most models there have."""
    for part, other in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o")):
        getattr(theirs, f"{other}_proj").load_state_dict(getattr(ours, part).state_dict())


def future() -> Tensor:
    """[1 1 q k], -inf above the diagonal: what eager attention adds to the scores."""
    return torch.full((LENGTH, LENGTH), float("-inf")).triu(1)[None, None]


def with_rotary(
    ours: Attention, theirs: nn.Module, embedding: nn.Module
) -> tuple[Outcome, Outcome]:
    """Compare causal attention, and the gradients of inputs and keys; they get rotary waves."""
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    expected, _ = theirs(x, embedding(x, POSITIONS), future())
    return (
        outcome(ours(x), [x, ours.key.weight]),
        outcome(expected, [x, theirs.k_proj.weight]),
    )


@parity("grouped_query", "transformers LlamaAttention")
def grouped_query() -> tuple[Outcome, Outcome]:
    ours = create_attention(
        "grouped_query", dim=DIM, heads=HEADS, kv_heads=KV_HEADS, role="causal", position="rotary"
    )
    config = LlamaConfig(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        attn_implementation="eager",
    )
    theirs = LlamaAttention(config, layer_idx=0)
    copy_projections(ours, theirs)
    return with_rotary(ours, theirs, LlamaRotaryEmbedding(config))
