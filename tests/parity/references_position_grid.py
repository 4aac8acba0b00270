"""Rotary positions on grids against the vision models of transformers."""

import torch
from transformers import Qwen2VLTextConfig, Sam2VideoConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLAttention, Qwen2VLRotaryEmbedding
from transformers.models.sam2_video.modeling_sam2_video import (
    Sam2VideoRoPEAttention,
    Sam2VideoVisionRotaryEmbedding,
)

from attention_zoo import create_attention
from tests.parity.compared import Outcome, encoded, outcome, parity
from tests.parity.references_transformers import (
    DIM,
    HEADS,
    LENGTH,
    POSITIONS,
    copy_projections,
    future,
)


@parity("axial_rotary", "transformers Sam2VideoRoPEAttention")
def axial_rotary() -> tuple[Outcome, Outcome]:
    """On rows of five tokens, the last of which is not full."""
    ours = create_attention("multi_head", dim=DIM, heads=HEADS, role="global", bias=True)
    encoded(ours, "axial_rotary", base=50.0, grid_width=5, layout="interleaved")
    config = Sam2VideoConfig(
        memory_attention_hidden_size=DIM,
        memory_attention_downsample_rate=1,
        memory_attention_num_attention_heads=HEADS,
        rope_parameters={"rope_type": "axial", "rope_theta": 50.0},
        attn_implementation="eager",
    )
    theirs = Sam2VideoRoPEAttention(config).eval()
    copy_projections(ours, theirs)
    grid = torch.stack([POSITIONS[0] % 5, POSITIONS[0] // 5], dim=-1)
    x = torch.randn(2, LENGTH, DIM).mul(3.0).requires_grad_()
    tokens = x[:, None]
    expected, _ = theirs(tokens, tokens, tokens, Sam2VideoVisionRotaryEmbedding(config)(x, grid))
    return (
        outcome(ours(x), [x, ours.query.weight, ours.key.weight]),
        outcome(expected[:, 0], [x, theirs.q_proj.weight, theirs.k_proj.weight]),
    )


@parity("multi_axis_rotary", "transformers Qwen2VLAttention")
def multi_axis_rotary() -> tuple[Outcome, Outcome]:
    """Of frames of two rows of three tokens."""
    ours = create_attention("multi_head", dim=DIM, heads=HEADS, role="causal")
    for part in (ours.query, ours.key, ours.value):
        part.bias = torch.nn.Parameter(torch.randn(DIM))
    encoded(ours, "multi_axis_rotary", base=50.0, grid_height=2, grid_width=3, sections=[1, 2, 1])
    config = Qwen2VLTextConfig(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        rope_parameters={"rope_type": "default", "rope_theta": 50.0, "mrope_section": [1, 2, 1]},
        attn_implementation="eager",
    )
    theirs = Qwen2VLAttention(config, layer_idx=0)
    copy_projections(ours, theirs)
    axes = torch.stack([POSITIONS // 6, POSITIONS // 3 % 2, POSITIONS % 3])
    x = torch.randn(2, LENGTH, DIM).mul(3.0).requires_grad_()
    rotation = Qwen2VLRotaryEmbedding(config)(x, axes)
    expected, _ = theirs(x, future(), position_embeddings=rotation)
    return (
        outcome(ours(x), [x, ours.query.weight, ours.key.weight]),
        outcome(expected, [x, theirs.q_proj.weight, theirs.k_proj.weight]),
    )
