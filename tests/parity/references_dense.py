"""Variants of dense attention against transformers, by its eager attention, and x-transformers."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DeepseekV3Config,
    DiffLlamaConfig,
    Gemma2Config,
    Olmo2Config,
    Qwen3Config,
    Qwen3NextConfig,
)
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RotaryEmbedding,
)
from transformers.models.diffllama.modeling_diffllama import (
    DiffLlamaAttention,
    DiffLlamaRotaryEmbedding,
)
from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention, Gemma2RotaryEmbedding
from transformers.models.olmo2.modeling_olmo2 import Olmo2Attention, Olmo2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RotaryEmbedding
from transformers.models.qwen3_next.modeling_qwen3_next import (
    Qwen3NextAttention,
    Qwen3NextRotaryEmbedding,
)

from attention_zoo import create_attention, create_position
from tests.conformance.numbers import default_dtype
from tests.parity.compared import Outcome, outcome, parity
from tests.parity.references_transformers import (
    DIM,
    HEADS,
    KV_HEADS,
    LENGTH,
    POSITIONS,
    copy_projections,
    future,
    with_rotary,
)

with warnings.catch_warnings():
    # It scripts functions, which torch is about to give up.
    warnings.simplefilter("ignore", DeprecationWarning)
    from x_transformers.x_transformers import Attention as XTransformersAttention

HEAD_DIM = DIM // HEADS
SIZES = {
    "hidden_size": DIM,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "attn_implementation": "eager",
}


def tokens() -> Tensor:
    return torch.randn(2, LENGTH, DIM, requires_grad=True)


def scatter(*weights: nn.Parameter) -> None:
    """Norms start with ones, which would hide an exchange."""
    for weight in weights:
        nn.init.uniform_(weight, 0.5, 1.5)


@parity("qk_norm", "transformers Qwen3Attention")
def qk_norm_shared() -> tuple[Outcome, Outcome]:
    ours = create_attention(
        "qk_norm",
        dim=DIM,
        heads=HEADS,
        kv_heads=KV_HEADS,
        role="causal",
        position="rotary",
        norm="rms_shared",
    )
    scatter(ours.query_norm.weight, ours.key_norm.weight)
    config = Qwen3Config(**SIZES, rms_norm_eps=1e-6)
    theirs = Qwen3Attention(config, layer_idx=0)
    copy_projections(ours, theirs)
    theirs.q_norm.load_state_dict(ours.query_norm.state_dict())
    theirs.k_norm.load_state_dict(ours.key_norm.state_dict())
    x = tokens()
    expected, _ = theirs(x, Qwen3RotaryEmbedding(config)(x, POSITIONS), future())
    return (
        outcome(ours(x), [x, ours.key.weight, ours.query_norm.weight]),
        outcome(expected, [x, theirs.k_proj.weight, theirs.q_norm.weight]),
    )


@parity("qk_norm", "transformers Olmo2Attention")
def qk_norm_full() -> tuple[Outcome, Outcome]:
    ours = create_attention(
        "qk_norm",
        dim=DIM,
        heads=HEADS,
        kv_heads=KV_HEADS,
        role="causal",
        position="rotary",
        norm="rms_full",
    )
    scatter(ours.query_norm.weight, ours.key_norm.weight)
    config = Olmo2Config(**SIZES, rms_norm_eps=1e-6)
    theirs = Olmo2Attention(config, layer_idx=0)
    copy_projections(ours, theirs)
    with torch.no_grad():
        theirs.q_norm.weight.copy_(ours.query_norm.weight.flatten())
        theirs.k_norm.weight.copy_(ours.key_norm.weight.flatten())
    return with_rotary(ours, theirs, Olmo2RotaryEmbedding(config))


@parity("soft_capped", "transformers Gemma2Attention")
def soft_capped() -> tuple[Outcome, Outcome]:
    """With a cap that the scores reach."""
    ours = create_attention(
        "soft_capped",
        dim=DIM,
        heads=HEADS,
        kv_heads=KV_HEADS,
        role="causal",
        position="rotary",
        cap=0.5,
    )
    config = Gemma2Config(
        **SIZES, query_pre_attn_scalar=HEAD_DIM, attn_logit_softcapping=0.5, sliding_window=LENGTH
    )
    theirs = Gemma2Attention(config, layer_idx=0)
    copy_projections(ours, theirs)
    return with_rotary(ours, theirs, Gemma2RotaryEmbedding(config))


@parity("gated", "transformers Qwen3NextAttention")
def gated() -> tuple[Outcome, Outcome]:
    """Theirs also norms queries and keys, which is taken out here. One matrix gives, head by head,
    their queries and gates.
    """
    ours = create_attention(
        "gated", dim=DIM, heads=HEADS, kv_heads=KV_HEADS, role="causal", position="rotary"
    )
    rotation = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    config = Qwen3NextConfig(**SIZES, rope_parameters=rotation)
    theirs = Qwen3NextAttention(config, layer_idx=0)
    theirs.q_norm = theirs.k_norm = nn.Identity()
    both = [part.weight.unflatten(0, (HEADS, HEAD_DIM)) for part in (ours.query, ours.gate)]
    with torch.no_grad():
        theirs.q_proj.weight.copy_(torch.cat(both, dim=1).flatten(0, 1))
    for part, other in (("key", "k"), ("value", "v"), ("output", "o")):
        getattr(theirs, f"{other}_proj").load_state_dict(getattr(ours, part).state_dict())
    return with_rotary(ours, theirs, Qwen3NextRotaryEmbedding(config))


@parity("differential", "transformers DiffLlamaAttention")
@default_dtype("float64")
def differential() -> tuple[Outcome, Outcome]:
    """Their score heads i and i + h are the halves of our head i, which has twice their width.

    In float64: the gradient of λ is a number, of a sum that all but cancels.
    """
    ours = create_attention(
        "differential",
        dim=DIM,
        heads=HEADS // 2,
        kv_heads=KV_HEADS // 2,
        role="causal",
        position="rotary",
        layer=2,
    )
    nn.init.normal_(ours.query_mix)
    nn.init.normal_(ours.key_mix)
    config = DiffLlamaConfig(**SIZES, rms_norm_eps=1e-5)
    theirs = DiffLlamaAttention(config, layer_idx=2)
    with torch.no_grad():
        for part, other in (("query", "q"), ("key", "k"), ("value", "v")):
            weight = getattr(ours, part).weight.unflatten(0, (-1, 2, HEAD_DIM))
            getattr(theirs, f"{other}_proj").weight.copy_(weight.transpose(0, 1).flatten(0, 2))
        for i in (0, 1):
            getattr(theirs, f"lambda_q{i + 1}").copy_(ours.query_mix[i])
            getattr(theirs, f"lambda_k{i + 1}").copy_(ours.key_mix[i])
    theirs.o_proj.load_state_dict(ours.output.state_dict())
    x = tokens()
    expected, _ = theirs(x, DiffLlamaRotaryEmbedding(config)(x, POSITIONS), future())
    leaves = [theirs.lambda_q1, theirs.lambda_q2]
    found = outcome(expected, [x, theirs.o_proj.weight, *leaves])
    return (
        outcome(ours(x), [x, ours.output.weight, ours.query_mix]),
        [*found[:3], torch.stack(found[3:])],
    )


@parity("multi_head_latent", "transformers DeepseekV3Attention")
def multi_head_latent() -> tuple[Outcome, Outcome]:
    return like_deepseek("rotary", {"rope_type": "default", "rope_theta": 10000.0})


@parity("multi_head_latent", "transformers DeepseekV3Attention")
def multi_head_latent_yarn() -> tuple[Outcome, Outcome]:
    """With the scale of all scores that DeepSeek's models have, `mscale` = `mscale_all_dim` = 1."""
    rope = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 16,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    return like_deepseek("yarn", rope, factor=8.0, original_length=16)


@parity("yarn", "transformers DeepseekV3Attention")
def yarn_mscale() -> tuple[Outcome, Outcome]:
    """With one factor for rotated channels and another for the others."""
    options = {"factor": 8.0, "mscale": 0.5, "mscale_all_dim": 2.0}
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "original_max_position_embeddings": 16}
    return like_deepseek("yarn", rope | options, original_length=16, **options)


def like_deepseek(position: str, rope: dict[str, Any], **options: Any) -> tuple[Outcome, Outcome]:
    """Theirs makes the latent and the rotary key in one matrix, keys and values in another; its
    rotation turns neighbouring channels.
    """
    latent, query_latent, rope_dim = 12, 20, 6
    ours = create_attention(
        "multi_head_latent",
        dim=DIM,
        heads=HEADS,
        role="causal",
        latent_dim=latent,
        query_latent_dim=query_latent,
        rope_dim=rope_dim,
    )
    ours.attach_position(
        create_position(
            position,
            dim=DIM,
            heads=HEADS,
            head_dim=ours.position_dim,
            role="causal",
            layout="interleaved",
            **options,
        )
    )
    scatter(ours.latent[1].weight, ours.query_latent[1].weight)
    config = DeepseekV3Config(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        q_lora_rank=query_latent,
        kv_lora_rank=latent,
        qk_nope_head_dim=HEAD_DIM,
        qk_rope_head_dim=rope_dim,
        rope_parameters=rope,
        v_head_dim=HEAD_DIM,
        rope_interleave=True,
        attn_implementation="eager",
    )
    theirs = DeepseekV3Attention(config, layer_idx=0)
    theirs.q_a_proj.load_state_dict(ours.query_latent[0].state_dict())
    theirs.q_a_layernorm.load_state_dict(ours.query_latent[1].state_dict())
    theirs.q_b_proj.load_state_dict(ours.query.state_dict())
    theirs.kv_a_layernorm.load_state_dict(ours.latent[1].state_dict())
    theirs.o_proj.load_state_dict(ours.output.state_dict())
    up = [part.weight.unflatten(0, (HEADS, HEAD_DIM)) for part in (ours.key, ours.value)]
    with torch.no_grad():
        theirs.kv_a_proj_with_mqa.weight.copy_(
            torch.cat([ours.latent[0].weight, ours.shared_key.weight])
        )
        theirs.kv_b_proj.weight.copy_(torch.cat(up, dim=1).flatten(0, 1))
    x = tokens()
    expected, _ = theirs(x, DeepseekV3RotaryEmbedding(config)(x, POSITIONS), future())
    return (
        outcome(ours(x), [x, ours.latent[1].weight, ours.query.weight]),
        outcome(expected, [x, theirs.kv_a_layernorm.weight, theirs.q_b_proj.weight]),
    )


@parity("laser", "x-transformers Attention(laser=True)")
def laser() -> tuple[Outcome, Outcome]:
    """Their bound of the values is set where it has no effect in float32."""
    ours = create_attention("laser", dim=DIM, heads=HEADS, role="causal")
    theirs = XTransformersAttention(
        DIM, dim_head=HEAD_DIM, heads=HEADS, causal=True, laser=True, laser_softclamp_value=1e4
    )
    parts = {"query": "to_q", "key": "to_k", "value": "to_v", "output": "to_out"}
    nn.init.normal_(ours.value.weight, std=0.5)
    for part, other in parts.items():
        getattr(theirs, other).load_state_dict(getattr(ours, part).state_dict())
    x = tokens()
    return (
        outcome(ours(x), [x, ours.key.weight, ours.value.weight]),
        outcome(theirs(x), [x, theirs.to_k.weight, theirs.to_v.weight]),
    )
