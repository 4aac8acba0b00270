"""DeepSeek-V4's compressed attention, against transformers."""

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import DeepseekV4Config
from transformers.models.deepseek_v4.modeling_deepseek_v4 import (
    DeepseekV4Attention,
    DeepseekV4RotaryEmbedding,
)

from attention_zoo import create_attention
from attention_zoo.attention.local.compressed import CompressedAttention
from attention_zoo.attention.local.compressor import BlockCompressor
from attention_zoo.attention.selected.compressed_sparse import CompressedSparseAttention
from tests.parity.compared import Outcome, encoded, outcome, parity

DIM, HEADS, WIDTH, ROTATED = 32, 4, 8, 4
LENGTH, BLOCK, WINDOW = 30, 4, 6


def compare(name: str, layer_type: str, **options: Any) -> tuple[Outcome, Outcome]:
    """Compare both in a window, with partial rotary positions, where sinks and B are not zero.

    Their query has a normalised latent, which the norm of the query undoes if its projection is the
    identity. Their output has one group, whose second projection is the identity.
    """
    sizes = {"heads": HEADS, "head_dim": WIDTH, "block": BLOCK, "window": WINDOW}
    ours = create_attention(name, dim=DIM, role="causal", **sizes, **options)
    assert isinstance(ours, CompressedAttention)
    rotary = {"base": 160000.0, "layout": "interleaved", "fraction": ROTATED / WIDTH}
    encoded(ours, "partial_rotary", **rotary)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    config = DeepseekV4Config(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        head_dim=WIDTH,
        q_lora_rank=DIM,
        partial_rotary_factor=ROTATED / WIDTH,
        num_hidden_layers=1,
        layer_types=[layer_type],
        compress_rates={layer_type: BLOCK},
        sliding_window=WINDOW,
        o_groups=1,
        o_lora_rank=DIM,
        index_n_heads=options.get("index_heads", 1),
        index_head_dim=WIDTH,
        index_topk=options.get("top_k", 1),
        attn_implementation="eager",
    )
    theirs = DeepseekV4Attention(config, layer_idx=0)
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    positions = torch.arange(LENGTH)[None]
    distance = positions.T - positions
    hidden = (distance < 0) | (distance >= WINDOW)
    mask = torch.zeros(LENGTH, LENGTH).masked_fill(hidden, float("-inf")).expand(2, 1, -1, -1)
    waves = DeepseekV4RotaryEmbedding(config)(x, positions, "compress")
    weights = {"compressor." + name: part for name, part in compressed(ours.compressor).items()}
    if isinstance(ours, CompressedSparseAttention):
        weights |= indexed(ours)
    weights |= {
        "q_a_proj.weight": torch.eye(DIM),
        "q_b_proj.weight": reordered(ours.query.weight, 0),
        "kv_proj.weight": reordered(ours.key_value.weight, 0),
        "kv_norm.weight": reordered(ours.key_value_norm.weight, 0),
        "o_a_proj.weight": reordered(ours.output.weight, 1),
        "o_b_proj.weight": torch.eye(DIM),
        "sinks": ours.sinks,
    }
    expected, _ = functional_call(theirs, weights, (x, {"compress": waves}, positions, mask))
    leaves = [part for name, part in ours.named_parameters() if not name.startswith("index")]
    return outcome(ours(x), [x, *leaves]), outcome(expected, [x, *leaves])


def reordered(weight: Tensor, dim: int) -> Tensor:
    """Their heads have the rotated channels last, ours have them first."""
    return weight.unflatten(dim, (-1, WIDTH)).roll(-ROTATED, dim + 1).flatten(dim, dim + 1)


def compressed(ours: BlockCompressor) -> dict[str, Tensor]:
    return {
        "kv_proj.weight": reordered(ours.value.weight, 0),
        "gate_proj.weight": reordered(ours.gate.weight, 0),
        "position_bias": reordered(ours.position_bias, 1),
        "kv_norm.weight": reordered(ours.norm.weight, 0),
    }


def indexed(ours: CompressedSparseAttention) -> dict[str, Tensor]:
    parts = compressed(ours.index_compressor) | {
        "q_b_proj.weight": reordered(ours.index_query.weight, 0),
        "scorer.weights_proj.weight": ours.index_weight.weight,
    }
    return {"compressor.indexer." + name: part for name, part in parts.items()}


@parity("heavily_compressed", "transformers DeepseekV4Attention")
def heavily_compressed() -> tuple[Outcome, Outcome]:
    return compare("heavily_compressed", "heavily_compressed_attention")


@parity("compressed_sparse", "transformers DeepseekV4Attention")
def compressed_sparse() -> tuple[Outcome, Outcome]:
    """With so many indexer heads that no two scores are 0: they choose any of equal ones."""
    return compare("compressed_sparse", "compressed_sparse_attention", top_k=3, index_heads=16)
